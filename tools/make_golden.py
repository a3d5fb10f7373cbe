"""Writes the data in ``tests/golden`` anew, or some of it: what ``tests/test_golden.py`` holds the product to.

    python tools/make_golden.py
    python tools/make_golden.py help service

Run it where behaviour was meant to change, and look at what git says of the difference. ``clips`` are made of the motions and
``tables`` of the clips, so that these take new motion only together with ``videos``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

import golden_net as net


def write_videos(scratch: Path) -> None:
    for case in net.CASES:
        made = net.video(case, scratch)
        if case.size:
            (net.GOLDEN / f"{case.motion}.json").write_text(net.motion_text(made))
        Image.fromarray(net.sheet(case, made)).save(net.GOLDEN / f"{case.name}.png", optimize=True)


def write_help(scratch: Path) -> None:
    folder = net.GOLDEN / "help"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.txt"):
        old.unlink()
    for command, text in net.help_texts().items():
        (folder / f"{command}.txt").write_text(text)


def write_service(scratch: Path) -> None:
    (net.GOLDEN / "openapi.json").write_text(net.service_description(scratch))


def write_clips(scratch: Path) -> None:
    net.write_clips(net.GOLDEN / "clips", scratch)


def write_tables(scratch: Path) -> None:
    for name, table in net.tables(scratch).items():
        (net.GOLDEN / f"table_{name}.json").write_text(net.table_text(table))


PARTS: dict[str, Callable[[Path], None]] = {
    "videos": write_videos, "help": write_help, "service": write_service, "clips": write_clips, "tables": write_tables,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)} (all)")
    args = parser.parse_args()
    if unknown := set(args.parts) - PARTS.keys():
        parser.error(f"{', '.join(sorted(unknown))}: give {', '.join(PARTS)}")
    net.GOLDEN.mkdir(exist_ok=True)
    for name, write in PARTS.items():
        if not args.parts or name in args.parts:
            with tempfile.TemporaryDirectory() as scratch:
                write(Path(scratch))
            print(name)


if __name__ == "__main__":
    main()
