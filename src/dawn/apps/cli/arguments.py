"""Arguments of the commands."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any, NoReturn

from dawn import DEFAULT_PRESET
from dawn.errors import OutputError

PACKED_PARTS = ("lfg", "a2v", "pbnet", "motion", "audio")
TRAINED_PARTS = ("lfg", "detail", "fine", "a2v", "pbnet", "sync", "paper-lfg", "paper-a2v", "paper-pose", "paper-blink")
DEFAULT_CLIP_SIZE_PX = 192


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing the usage as well."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {' '.join(message.split())} (see {self.prog} --help)\n")


def add_rendering(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="video to write (.mp4)")
    parser.add_argument("--size", type=int, help="side in px: 128, 256, 512 (the preset's, 256)")
    parser.add_argument(
        "--frame",
        choices=("crop", "full"),
        default="crop",
        help="square around the face, or whole photograph; its longest side is then at most --size, "
        "256 to 2560 px (crop; 1280)",
    )
    parser.add_argument("--face", type=_face, metavar="N|largest", help="which of several faces, from left to right")
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="shipped preset or a preset's folder (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (%(default)s)")
    parser.add_argument("--motion-out", type=Path, metavar="M.json", help="also write the motion, to edit or reuse")
    parser.add_argument(
        "--report", type=Path, metavar="R.json", help="then examine the video, and write what was found"
    )
    parser.set_defaults(seeds=())


def add_generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("portrait", type=Path, help="picture with one face")
    parser.add_argument("speech", type=Path, help="sound file, or video with sound")
    add_rendering(parser)
    parser.add_argument("--motion-in", type=Path, metavar="M.json", help="render this motion instead of generating one")
    parser.add_argument("--seed", type=int, help="same seed, same video (0)")
    parser.add_argument(
        "--retry",
        type=int,
        choices=range(1, 11),
        default=1,
        metavar="N",
        help="try N seeds from --seed on (1 to 10), keep the one whose lips fit best",
    )
    parser.add_argument("--steps", type=int, help="sampling steps")
    parser.add_argument("--sampler", choices=("ddim", "dpm++"), help="of the published model (paper presets)")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), help="of the published model's A2V network")
    parser.add_argument("--guidance", type=float, help="how strongly lips follow the sound; 1 is none")
    parser.add_argument("--pose-scale", type=float, help="strength of head motion, 0 to 3 (1)")
    parser.add_argument("--blink", type=float, help="strength of blinks, 0 to 1.5 (1)")
    parser.add_argument("--expression", type=float, help="strength of facial motion, 0 to 2 (1)")
    parser.add_argument("--still", action="store_true", help="keep the head still; only face and eyes move")
    parser.add_argument("--strict", action="store_true", help="refuse what dawn check warns of, before any work")
    parser.add_argument("--allow-silence", action="store_true", help="accept a silent recording")


def add_drive(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("portrait", type=Path, help="picture with one face")
    parser.add_argument("video", type=Path, help="video whose face moves the portrait; its sound is kept")
    add_rendering(parser)


def add_batch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "jobs",
        type=Path,
        metavar="JOBS.csv",
        help="columns portrait, speech and, if wanted, output (a name in OUT) and options of generate; "
        "paths are relative to this file",
    )
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="OUT", help="folder for videos and jobs.jsonl"
    )
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="of rows that name none (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 ... (%(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="also rows that failed before and have not changed")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the rows on a Ray cluster, or on one of this machine (local); inputs and OUT must be on a "
        "file system that its workers share",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of as a table")


def add_prepare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("videos", type=Path, help="folder with videos, or one video")
    parser.add_argument("out", type=Path, help="folder for the clips")
    parser.add_argument("--size", type=int, default=DEFAULT_CLIP_SIZE_PX, help="side of the crops in px (%(default)s)")
    parser.add_argument("--people", type=Path, metavar="CSV", help="columns file, person: who is in which video")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")


def add_train(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("part", choices=TRAINED_PARTS, metavar="PART", help=", ".join(TRAINED_PARTS))
    parser.add_argument("--data", type=Path, required=True, help="prepared clips")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; if it has a state, it is resumed")
    parser.add_argument("--validation", type=Path, help="prepared clips of other people")
    parser.add_argument("--audio", type=Path, help="audio.safetensors of a preset, or a HuBERT folder (paper-...)")
    parser.add_argument(
        "--set",
        action="extend",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="training options; model.KEY=VALUE for the network's",
    )


def add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", help="name of the preset")
    for part in PACKED_PARTS:
        parser.add_argument(
            f"--{part}", type=Path, nargs="+", metavar="DIR", help=f"has {part}.safetensors; of several their mean"
        )
    parser.add_argument(
        "--shares", metavar="PRESET", help="the preset beside OUT that has the parts which are not given"
    )
    parser.add_argument("--size", type=int, help="side of its videos in px: 128, 256, 512 (the generator's own)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the preset")


def add_convert(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", type=Path, help="folder with the authors' published files, at any depth")
    parser.add_argument("--size", type=int, choices=(128, 256), help="which model, where both are there")
    parser.add_argument("--name", help="name of the preset (paper-128 or paper-256)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the preset")


def add_check(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("portrait", type=Path, help="picture with one face")
    parser.add_argument("speech", type=Path, nargs="?", help="sound file, or video with sound")
    parser.add_argument("--face", type=_face, metavar="N|largest", help="which of several faces, from left to right")
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="whose size of picture counts (%(default)s)")
    parser.add_argument("--allow-silence", action="store_true", help="accept a silent recording")
    parser.add_argument(
        "--json", type=Path, metavar="F", help="also write the report as JSON; - prints it instead of words"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 2 on warnings too")


def add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", type=Path, help="video, or motion file (.json)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="F.png", help="picture to write (the source's name and .png)"
    )
    parser.add_argument("--preset", help="whose motion space a motion file is shown with (the one it names)")


def add_studio(parser: argparse.ArgumentParser) -> None:
    _add_server(parser, "7860")
    parser.add_argument("--auth-file", type=Path, metavar="F", help="who may enter: one user:password a line")
    parser.add_argument(
        "--auth", metavar="USER:PASSWORD", help="the same for one person; DAWN_STUDIO_AUTH is not seen by others"
    )
    parser.add_argument("--max-seconds", type=float, metavar="S", help="longest recording (300)")
    parser.add_argument("--max-queue", type=int, metavar="N", help="videos that may wait for their turn (8)")
    parser.add_argument(
        "--keep-hours", type=float, metavar="H", help="files of a page that is not used are kept so long (2)"
    )
    parser.add_argument("--root-path", metavar="PATH", help="where a proxy shows the page, if not at /")
    parser.add_argument("--open-browser", action="store_true", default=None, help="open the page")


def add_serve(parser: argparse.ArgumentParser) -> None:
    _add_server(parser, "8000")
    parser.add_argument("--data", type=Path, metavar="DIR", help="folder of jobs and results (the user's state folder)")
    parser.add_argument("--token-file", type=Path, metavar="F", help="has the bearer token; or set DAWN_TOKEN")
    parser.add_argument("--max-seconds", type=float, metavar="S", help="longest recording (600)")
    parser.add_argument("--max-queue", type=int, metavar="N", help="jobs that may wait; more are answered 429 (16)")
    parser.add_argument("--upload-timeout-s", type=float, metavar="S", help="an upload must have come in by then (60)")
    parser.add_argument("--keep-hours", type=float, metavar="H", help="finished jobs are kept so long (24)")


def _add_server(parser: argparse.ArgumentParser, port: str) -> None:
    """What both servers know; defaults live in their settings, so that what is not given is None."""
    parser.add_argument(
        "--host", help="address to listen on; any other than this machine's own asks for a secret (127.0.0.1)"
    )
    parser.add_argument("--port", type=int, help=f"port to listen on, 0 for a free one ({port})")
    parser.add_argument("--preset", help=f"shipped preset or a preset's folder ({DEFAULT_PRESET})")
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 ... (auto)")
    parser.add_argument("--max-upload-mb", type=float, metavar="MB", help="greatest upload (64)")
    parser.add_argument("--max-pixels", type=int, metavar="N", help="most pixels of a portrait")


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clips", type=Path, nargs="?", help="prepared clips of people who were not trained on")
    parser.add_argument("--clips", type=Path, dest="clips_too", metavar="DIR", help="the same")
    parser.add_argument("--preset", help=f"shipped preset or a preset's folder ({DEFAULT_PRESET})")
    parser.add_argument(
        "--also", nargs="+", action="extend", default=[], metavar="PRESET", help="further presets beside it"
    )
    parser.add_argument(
        "--generated",
        type=Path,
        nargs=2,
        metavar=("MADE", "REAL"),
        help="instead of a preset: finished videos or clips against true ones of the same names",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="only the first N clips of each person, or N videos")
    parser.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="show every preset at this size, as generate --size does (each at its own)",
    )
    parser.add_argument(
        "--takes",
        type=int,
        default=1,
        metavar="N",
        help="takes of a minute on each portrait, to tell a decline from chance (1)",
    )
    parser.add_argument("--sface", type=Path, help="sface.safetensors, for the identity figures")
    parser.add_argument("--judge", type=Path, metavar="F", help="another sync judge than the shipped one")
    parser.add_argument("--community", type=Path, metavar="DIR", help="folder with the networks of FID, FVD and LSE")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures as JSON")


def _face(text: str) -> int | str:
    if text == "largest":
        return text
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor 'largest'") from None


VIDEO = (".mp4", ".m4v", ".mov")


JSON = (".json",)


def check_output(path: Path, suffixes: tuple[str, ...], *inputs: Path) -> None:
    """Refuse an output that could not be written before the long work begins, by really creating a file beside it."""
    from dawn.media.files import create_beside

    _, temporary = create_beside(path, suffixes)
    temporary.unlink(missing_ok=True)
    for source in inputs:
        with suppress(OSError, ValueError):  # what is wrong with an input is said where it is read
            if path.samefile(source):
                raise OutputError(f"cannot write '{path}': it is the input itself; choose another name")


def bar(args: argparse.Namespace) -> AbstractContextManager[Any]:
    """A callback (stage, done, total) that draws bars on a terminal, and nothing elsewhere."""
    from dawn.progress import progress_bar

    return progress_bar(hidden=args.quiet or not sys.stderr.isatty())
