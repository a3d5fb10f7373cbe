"""Several portraits speaking the same words, as one JPEG: a row is a portrait's crop and frames spread over the speech.

The speech is cut into equal parts, and of each in turn the frame with the widest and with the least opening of the lips is
shown, so that neither a wide mouth nor one that should be shut is missing (lite presets only).

    python tools/portrait_sheet.py examples/portraits/*.jpg --speech examples/speech.wav -o sheet.jpg --preset lite-256
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
from dawn.face.geometry import lip_aperture
from dawn.media.files import replace_file
from dawn.pipeline import Dawn
from dawn.structs import ImageArray, Speech

JPEG_QUALITY = 85


def row(model: Dawn, portrait: Path, speech: Speech, frames: int, seed: int = 0) -> list[ImageArray]:
    """The portrait's crop, then a frame of each of ``frames`` parts of the speech, each (S, S, 3) uint8.

    Raises InputError with the portrait's name before what is wrong with it, ConfigError for a preset that is not lite.
    """
    try:
        video = model(portrait, speech, seed=seed)
    except InputError as error:
        raise type(error)(f"{portrait}: {error}") from error
    motion = video.motion
    opening = lip_aperture(model.landmarks(video.face, motion, 0, len(motion))).cpu().numpy()
    parts = np.array_split(np.arange(len(motion)), min(frames, len(motion)))
    at = np.array([k[opening[k].argmin() if i % 2 else opening[k].argmax()] for i, k in enumerate(parts)])
    # Frames are rendered independently of each other, so that only the wanted ones need be.
    return [video.face.crop, *model.render(video.face, motion.at(at))]


def sheet(
    model: Dawn, portraits: Sequence[Path], speech: Speech, columns: int, cell_px: int, seed: int = 0
) -> ImageArray:
    """One row for each portrait, (len(portraits) * cell_px, columns * cell_px, 3) uint8. Raises as ``row``."""
    cells = [cell for portrait in portraits for cell in row(model, portrait, speech, columns - 1, seed)]
    return media.contact_sheet(cells, columns, cell_px)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="portrait_sheet.py", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("portraits", nargs="+", type=Path, metavar="PORTRAIT")
    parser.add_argument("--speech", required=True, type=Path, help="sound file")
    parser.add_argument("-o", "--output", required=True, type=Path, metavar="OUT.jpg")
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="shipped preset or a preset's folder (%(default)s)")
    parser.add_argument("--columns", type=int, default=6, help="crop and frames in a row (%(default)s)")
    parser.add_argument("--cell", type=int, default=144, help="side of one picture in px (%(default)s)")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    try:
        if not (2 <= args.columns <= 50 and 16 <= args.cell <= 512):
            raise ConfigError(f"--columns {args.columns} --cell {args.cell}: give 2 to 50 columns and 16 to 512 px")
        with replace_file(args.output, (".jpg", ".jpeg")) as temporary:
            speech, model = media.read_speech(args.speech), Dawn.from_pretrained(args.preset)
            made = sheet(model, args.portraits, speech, args.columns, args.cell, args.seed)
            Image.fromarray(made).save(temporary, format="JPEG", quality=JPEG_QUALITY, optimize=True)
    except DawnError as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    print(f"{args.output}: {len(args.portraits)} portraits, {args.columns - 1} frames each")
    return 0


if __name__ == "__main__":
    sys.exit(main())
