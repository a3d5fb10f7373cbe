"""Several portraits saying the same words side by side, as one animated WebP: the moving picture of the README.

python tools/make_teaser.py examples/portrait.png examples/portraits/hopper.jpg examples/portraits/tanguy.jpg \
    --speech examples/speech.wav -o docs/teaser.webp --seed 5
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from dawn import DEFAULT_PRESET, media
from dawn.apps.cli.arguments import Parser
from dawn.errors import ConfigError, DawnError, InputError
from dawn.media.files import replace_file
from dawn.pipeline import Dawn
from dawn.structs import FPS, ImageArray, Speech

STRIDE = 2
"""Every second frame is shown, 12.5 a second."""


def draw_frames(model: Dawn, portrait: Path, speech: Speech, first: int, last: int, seed: int) -> list[ImageArray]:
    """Draw every second frame of [first, last), each (S, S, 3) uint8. Raises InputError with the portrait's name."""
    try:
        video = model(portrait, speech, seed=seed)
    except InputError as error:
        raise type(error)(f"{portrait}: {error}") from error
    wanted = np.zeros(len(video), np.bool_)
    wanted[first:last:STRIDE] = True
    return [frame for _, frame in video.frames(wanted)]


def join_columns(columns: Sequence[Sequence[ImageArray]], cell_px: int, gap_px: int) -> list[Image.Image]:
    """Put the frames of each moment beside each other, ``cell_px`` a side, with ``gap_px`` of white between them."""
    size = (len(columns) * (cell_px + gap_px) - gap_px, cell_px)
    pictures = []
    for moment in zip(*columns, strict=True):
        picture = Image.new("RGB", size, "white")
        for place, frame in enumerate(moment):
            square = Image.fromarray(frame).resize((cell_px, cell_px), Image.Resampling.LANCZOS)
            picture.paste(square, (place * (cell_px + gap_px), 0))
        pictures.append(picture)
    return pictures


def make_label(preset: str) -> Image.Exif:
    """Say in the file's metadata that it is generated, as every video of the product does."""
    exif = Image.Exif()
    exif[0x010E] = f"AI-generated video: dawn, {preset}"  # ImageDescription
    return exif


def make_parser() -> Parser:
    parser = Parser(prog="make_teaser.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("portraits", nargs="+", type=Path, metavar="PORTRAIT")
    parser.add_argument("--speech", required=True, type=Path, help="sound file")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT.webp")
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="shipped preset or a preset's folder (%(default)s)")
    parser.add_argument("--start", type=float, default=4.4, metavar="S", help="first second shown (%(default)s)")
    parser.add_argument("--seconds", type=float, default=4.0, metavar="S", help="how long (%(default)s)")
    parser.add_argument("--cell", type=int, default=224, help="side of one face in px (%(default)s)")
    parser.add_argument("--quality", type=int, default=80, help="of the WebP, 1 to 100 (%(default)s)")
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first portrait; the next ones count on (%(default)s)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    args = make_parser().parse_args(argv)
    try:
        speech, model = media.read_speech(args.speech), Dawn.from_pretrained(args.preset)
        first, last = round(args.start * FPS), round((args.start + args.seconds) * FPS)
        if not 0 <= first < last <= speech.frame_count:
            raise ConfigError(
                f"--start {args.start} --seconds {args.seconds}: the speech has {speech.duration_s:.2f} s"
            )
        columns = [
            draw_frames(model, portrait, speech, first, last, args.seed + place)
            for place, portrait in enumerate(args.portraits)
        ]
        pictures = join_columns(columns, args.cell, gap_px=4)
        with replace_file(args.output, (".webp",)) as temporary:
            pictures[0].save(
                temporary,
                format="WEBP",
                save_all=True,
                append_images=pictures[1:],
                duration=round(1000 * STRIDE / FPS),
                loop=0,
                quality=args.quality,
                method=6,
                exif=make_label(args.preset),
            )
    except DawnError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    size = args.output.stat().st_size
    print(f"{args.output}: {len(pictures)} frames of {pictures[0].width} x {pictures[0].height} px, {size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
