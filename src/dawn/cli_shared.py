"""What the commands share: outputs that are refused before the work begins, and bars."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, suppress
from pathlib import Path
from typing import Any

from dawn.errors import OutputError

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
