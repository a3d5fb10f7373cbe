"""Arguments of the commands."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from pydantic import BaseModel

from dawn import DEFAULT_PRESET
from dawn.errors import OutputError, missing_extra
from dawn.options import (
    DEVICE,
    PORTRAIT,
    PRESET,
    RULES,
    RULES_WORDS,
    SPEECH,
    GenerateOptions,
    Option,
    VideoOptions,
    options_of,
)

DEFAULT_CLIP_SIZE_PX = 192


class Parser(argparse.ArgumentParser):
    """Says what is wrong in one line instead of printing the usage as well.

    fill: adds the arguments when they are first needed, so that a command's parser costs nothing until it is called.
    """

    def __init__(
        self, *args: Any, fill: Callable[[argparse.ArgumentParser], None] | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        self._fill = fill

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """Add the arguments on first use, then parse as argparse does."""
        fill, self._fill = self._fill, None
        if fill is not None:
            fill(self)
        return super().parse_known_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        """End with status 2 and the message in one line."""
        self.exit(2, f"error: {' '.join(message.split())} (see {self.prog} --help)\n")


def add_option(parser: argparse.ArgumentParser, option: Option) -> None:
    """Add the flag of a declaration.

    Its default is None, or False for what is switched on: the default lives in the declaration, so that nothing
    overrides what it leaves open.
    """
    if option.truth:
        parser.add_argument(option.flag, action="store_true", help=option.words)
        return
    choices = option.choices if option.number is None and option.choices else None
    words = "|".join(["N", *option.choices]) if option.number and option.choices else option.control.value
    value: Callable[[str], Any] = partial(_number_or_word, option) if option.choices else option.number or str
    parser.add_argument(option.flag, type=str if choices else value, choices=choices, metavar=words, help=option.told)


def add_video_options(parser: argparse.ArgumentParser, *names: str) -> None:
    """Flags of ``VideoOptions``, all or those that are named."""
    for option in options_of(VideoOptions, *names):
        add_option(parser, option)


def video_options(args: argparse.Namespace) -> dict[str, Any]:
    """What was given of ``VideoOptions``, by name."""
    return given(args, VideoOptions)


def given(args: argparse.Namespace, kind: type[BaseModel]) -> dict[str, Any]:
    """What was given of a model's fields, by name; the rest is left to its defaults."""
    values = {name: getattr(args, name, None) for name in kind.model_fields}
    return {name: value for name, value in values.items() if value is not None and value is not False}


def add_rendering(parser: argparse.ArgumentParser) -> None:
    """Add what every command that makes a video takes: output, size, preset, networks, report."""
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="video to write (.mp4)")
    add_video_options(parser, "size", "frame", "face")
    parser.add_argument("--preset", default=DEFAULT_PRESET, help=f"{PRESET} (%(default)s)")
    _add_networks(parser, "auto")
    parser.add_argument("--motion-out", type=Path, metavar="M.json", help="also write the motion, to edit or reuse")
    parser.add_argument(
        "--report", type=Path, metavar="R.json", help="then examine the video, and write what was found"
    )


def _add_networks(parser: argparse.ArgumentParser, device: str) -> None:
    parser.add_argument("--device", default=device, help=f"{DEVICE} (%(default)s)")
    parser.add_argument("--rules", choices=RULES, default=RULES[0], help=f"{RULES_WORDS} (%(default)s)")


def add_generate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn generate``."""
    parser.add_argument("portrait", type=Path, help=PORTRAIT)
    parser.add_argument("speech", type=Path, help=SPEECH)
    add_rendering(parser)
    parser.add_argument("--motion-in", type=Path, metavar="M.json", help="render this motion instead of generating one")
    add_video_options(parser, *GenerateOptions.model_fields, "allow_silence")
    parser.add_argument(
        "--retry",
        type=int,
        choices=range(1, 11),
        default=1,
        metavar="N",
        help="try N seeds from --seed on (1 to 10), keep the one whose lips fit best",
    )
    parser.add_argument("--strict", action="store_true", help="refuse what dawn check warns of, before any work")


def add_drive(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn drive``."""
    parser.add_argument("portrait", type=Path, help=PORTRAIT)
    parser.add_argument("video", type=Path, help="video whose face moves the portrait; its sound is kept")
    add_rendering(parser)


def add_batch(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn batch``."""
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
    parser.add_argument("--device", default="auto", help=f"{DEVICE} (%(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="also rows that failed before and have not changed")
    parser.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run the rows on a Ray cluster, or on one of this machine (local); inputs and OUT must be on a "
        "file system that its workers share",
    )
    parser.add_argument("--json", action="store_true", help="print the results as JSON instead of as a table")


def add_prepare(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn prepare``."""
    parser.add_argument("videos", type=Path, help="folder with videos, or one video")
    parser.add_argument("out", type=Path, help="folder for the clips")
    parser.add_argument("--size", type=int, default=DEFAULT_CLIP_SIZE_PX, help="side of the crops in px (%(default)s)")
    parser.add_argument("--people", type=Path, metavar="CSV", help="columns file, person: who is in which video")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="processes (one a core)")


def add_train(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn train``."""
    parts = tuple(training_commands().TRAINABLE)
    parser.add_argument("part", choices=parts, metavar="PART", help=", ".join(parts))
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
    """Add the arguments of ``dawn pack``, with one option for each part of a lite preset."""
    from dawn.config import LitePresetConfig

    parser.add_argument("name", help="name of the preset")
    for part in LitePresetConfig.PARTS:
        parser.add_argument(
            f"--{part}", type=Path, nargs="+", metavar="DIR", help=f"has {part}.safetensors; of several their mean"
        )
    parser.add_argument(
        "--shares", metavar="PRESET", help="the preset beside OUT that has the parts which are not given"
    )
    parser.add_argument("--size", type=int, help="side of its videos in px: 128, 256, 512 (the generator's own)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the preset")


def add_convert(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn convert``."""
    parser.add_argument("folder", type=Path, help="folder with the authors' published files, at any depth")
    parser.add_argument("--size", type=int, choices=(128, 256), help="which model, where both are there")
    parser.add_argument("--name", help="name of the preset (paper-128 or paper-256)")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder of the preset")


def add_check(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn check``."""
    parser.add_argument("portrait", type=Path, help=PORTRAIT)
    parser.add_argument("speech", type=Path, nargs="?", help=SPEECH)
    parser.add_argument("--preset", default=DEFAULT_PRESET, help="whose size of picture counts (%(default)s)")
    add_video_options(parser, "face", "allow_silence")
    parser.add_argument(
        "--json", type=Path, metavar="F", help="also write the report as JSON; - prints it instead of words"
    )
    parser.add_argument("--strict", action="store_true", help="exit with 2 on warnings too")


def add_plot(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn plot``."""
    parser.add_argument("source", type=Path, help="video, or motion file (.json)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="F.png", help="picture to write (the source's name and .png)"
    )
    parser.add_argument("--preset", help="whose motion space a motion file is shown with (the one it names)")


def add_studio(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn studio``, as ``StudioSettings`` declares them."""
    from dawn.apps.studio.settings import StudioSettings

    for option in options_of(StudioSettings):
        add_option(parser, option)


def add_serve(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn serve``, as ``ServeSettings`` declares them."""
    from dawn.apps.serving.settings import ServeSettings

    for option in options_of(ServeSettings):
        add_option(parser, option)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``dawn evaluate``."""
    parser.add_argument("clips", type=Path, nargs="?", help="prepared clips of people who were not trained on")
    parser.add_argument("--clips", type=Path, dest="clips_too", metavar="DIR", help="the same")
    parser.add_argument("--preset", help=f"{PRESET} ({DEFAULT_PRESET})")
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
    _add_networks(parser, "cpu")
    parser.add_argument("--sface", type=Path, help="sface.safetensors, for the identity figures")
    parser.add_argument("--judge", type=Path, metavar="F", help="another sync judge than the shipped one")
    parser.add_argument("--community", type=Path, metavar="DIR", help="folder with the networks of FID, FVD and LSE")
    parser.add_argument("--json", type=Path, metavar="F", help="also write the figures as JSON")


def _number_or_word(option: Option, text: str) -> int | float | str:
    if text in option.choices:
        return text
    try:
        return (option.number or str)(text)
    except ValueError:
        words = " or ".join(map(repr, option.choices))
        raise argparse.ArgumentTypeError(f"{text!r} is neither a number nor {words}") from None


def training_commands() -> Any:
    """``dawn.research.training.commands``. Raises ConfigError: training has needs of its own, which are not installed."""
    try:
        from dawn.research.training import commands
    except ModuleNotFoundError as error:
        if error.name != "accelerate":
            raise
        raise missing_extra("accelerate", "train") from error
    return commands


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
