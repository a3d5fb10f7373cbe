"""What became of the rows: a line each in ``jobs.jsonl``, and the table at the end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from pydantic import ValidationError

from dawn.errors import OutputError
from dawn.media.files import output_error, quote
from dawn.structs import Strict

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

JOURNAL = "jobs.jsonl"


class Result(Strict):
    """What became of a row: a line of ``jobs.jsonl``. ``error``: one line, if it failed. ``kept``: from an earlier run."""

    row: int
    output: str
    state: Literal["done", "failed"]
    digest: str
    seconds: float
    frames: int = 0
    error: str | None = None
    kept: bool = False


class Journal:
    """``jobs.jsonl``: one line a result, the last one of an output counts. Lines that are damaged are passed over."""

    def __init__(self, out: Path) -> None:
        self.path = out / JOURNAL
        self.entries: dict[str, Result] = {}
        self._file = -1

    def __enter__(self) -> Journal:
        """Raises OutputError: not writable, or in use by another run."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        except OSError as error:
            raise output_error(self.path, error) from error
        try:
            self._lock()
            data = self.path.read_bytes()
            for line in filter(None, data.split(b"\n")):
                try:
                    entry = Result.model_validate_json(line)
                except ValidationError:
                    log.warning("%s: a damaged line is passed over: %.60r", self.path, line)
                    continue
                self.entries[entry.output] = entry
            if data and not data.endswith(b"\n"):  # the last run was cut off within a line
                os.write(self._file, b"\n")
        except BaseException:
            os.close(self._file)
            raise
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._file)

    def _lock(self) -> None:
        if fcntl is None:
            return
        try:
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise OutputError(f"{self.path}: another dawn batch writes to this folder; let it finish first") from error
        except OSError:  # some network file systems have no locks
            log.info("%s cannot be locked", self.path)

    def append(self, result: Result) -> None:
        """Add a line and see it on the disk. Raises OutputError."""
        line = result.model_dump_json(exclude={"kept"}).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OutputError(f"cannot write {quote(self.path)}: no space is left on the device; free some space")
            os.fsync(self._file)
        except OSError as error:
            raise output_error(self.path, error) from error


def as_json(results: Sequence[Result]) -> str:
    """The results as a JSON list, one object a row."""
    return json.dumps([result.model_dump() for result in results], indent=1)


def as_table(results: Sequence[Result]) -> str:
    """For people: row, output, state, what it took or why it failed; then the sum."""
    states = [{"done": "already there", "failed": "failed before"}[r.state] if r.kept else r.state for r in results]
    width = max((len(result.output) for result in results), default=0)
    lines = [f"{'row':>5}  {'output':{width}}  {'state':13}  seconds, or reason"]
    for result, state in zip(results, states, strict=True):
        lines.append(f"{result.row:5}  {result.output:{width}}  {state:13}  {result.error or f'{result.seconds:.1f}'}")
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    again = "; `retry_failed` tries the failed ones again" if "failed before" in states else ""
    return "\n".join([*lines, f"{len(results)} rows: {counts}{again}"])
