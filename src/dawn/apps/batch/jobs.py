"""The CSV of a batch → its rows, checked before any work."""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256
from pathlib import Path, PurePosixPath
from typing import Any

from dawn.checkpoint import file_sha256, find_preset, list_presets
from dawn.config import parse
from dawn.errors import ConfigError, DawnError, InputError
from dawn.media.files import check_input
from dawn.media.writer import SUFFIXES
from dawn.options import VideoOptions

MAX_ROWS = 10_000
MAX_CSV_BYTES = 8 << 20


class Row(VideoOptions):
    """One row of the CSV: its columns are these fields; empty cells take the defaults."""

    portrait: str
    speech: str
    output: str | None = None
    preset: str | None = None
    motion_in: str | None = None


COLUMNS = tuple(sorted(Row.model_fields, key=lambda name: (name not in ("portrait", "speech", "output"), name)))


@dataclass(frozen=True)
class Job:
    """A row that can be worked on. ``number``: as a spreadsheet counts, the header is row 1. ``output``: path in OUT.

    ``files``: portrait, speech and, if given, motion. ``preset``: shipped name or folder; ``preset_sha256`` of its
    configuration, which names its weights.
    """

    number: int
    row: Row
    output: str
    files: tuple[Path, ...]
    preset: str
    preset_sha256: str


def read_jobs(table: Path, out: Path, preset: str) -> list[Job]:
    """The rows of a CSV, checked. Raises InputError or ConfigError that names row and column."""
    header, records = _records(table)
    rows = []
    for number, cells in records:
        where = f"{table}, row {number}"
        if len(cells) != len(header):
            raise ConfigError(f"{where}: {len(cells)} cells under {len(header)} columns; quote cells that have commas")
        values = {name: cell.strip() for name, cell in zip(header, cells, strict=True) if cell.strip()}
        for name, value in values.items():
            if any(unicodedata.category(letter) == "Cc" for letter in value):
                raise ConfigError(f"{where}, column {name}: {value!r} has control characters; take them out")
        for name in ("portrait", "speech"):
            if name not in values:
                raise ConfigError(f"{where}, column {name}: is empty; name a file")
        rows.append((number, parse(Row, values, where)))
    outputs = _outputs(rows, table, out)
    jobs = []
    for number, row in rows:
        files = tuple(table.parent / name for name in (row.portrait, row.speech, row.motion_in) if name)
        chosen, checksum = _preset(row.preset, preset, table, number)
        jobs.append(Job(number, row, outputs[number], files, chosen, checksum))
    inputs = {path.resolve(): job.number for job in jobs for path in job.files}
    for job in jobs:
        if (user := inputs.get((out / job.output).resolve())) is not None:
            raise ConfigError(
                f"{table}, row {job.number}, column output: {job.output!r} is an input of row {user}; "
                "choose another name"
            )
    return jobs


def _records(table: Path) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """Header and (number, cells) of the rows that are not blank."""
    data = check_input(table, InputError, "table").read_bytes()
    if len(data) > MAX_CSV_BYTES:
        raise InputError(f"{table}: {len(data)} bytes, more than {MAX_CSV_BYTES}; split the table")
    try:
        lines = list(csv.reader(io.StringIO(data.decode("utf-8-sig"), newline=""), strict=True))
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise InputError(f"{table}, line {line}: not UTF-8; save the table as CSV in UTF-8") from error
    except csv.Error as error:
        raise InputError(f"{table}: not a CSV ({error}); save the table as CSV with commas") from error
    header = [name.strip().replace("-", "_") for name in lines[0]] if lines else []
    for name in header:
        if name not in COLUMNS:
            raise ConfigError(f"{table}, row 1: unknown column {name!r}: use {', '.join(COLUMNS)}, parted by commas")
        if header.count(name) > 1:
            raise ConfigError(f"{table}, row 1: column {name!r} is there twice; take one out")
    for name in ("portrait", "speech"):
        if name not in header:
            raise ConfigError(f"{table}, row 1: no column {name!r}; the first row names the columns")
    records = [(number, cells) for number, cells in enumerate(lines[1:], 2) if any(cell.strip() for cell in cells)]
    if not records:
        raise InputError(f"{table}: no rows below the header; add one for each video")
    if len(records) > MAX_ROWS:
        raise InputError(f"{table}: {len(records)} rows, more than {MAX_ROWS}; split the table")
    return header, records


def _outputs(rows: list[tuple[int, Row]], table: Path, out: Path) -> dict[int, str]:
    """{row number: path in OUT}; names that are not given are PORTRAIT-SPEECH.mp4, counted up where that is taken."""
    outputs: dict[int, str] = {}
    taken: dict[str, int] = {}
    for number, row in rows:
        if row.output is None:
            continue
        where = f"{table}, row {number}, column output: {row.output!r}"
        path = PurePosixPath(row.output)
        if path.suffix.lower() not in SUFFIXES:
            raise ConfigError(f"{where}: the name must end in {' or '.join(SUFFIXES)}")
        inside = not path.is_absolute() and ".." not in path.parts and not set(row.output) & set("\\:")
        if not inside or not (out / path).resolve().is_relative_to(out.resolve()):
            raise ConfigError(f"{where} is not inside {out}; give a name in that folder, without .. or a drive")
        if (other := taken.setdefault(_same_name(str(path)), number)) != number:
            raise ConfigError(f"{where} is the output of row {other} too; give each row its own")
        outputs[number] = str(path)
    for number, row in rows:
        if number not in outputs:
            stem = f"{Path(row.portrait).stem}-{Path(row.speech).stem}"
            name, count = f"{stem}.mp4", 1
            while taken.setdefault(_same_name(name), number) != number:
                count += 1
                name = f"{stem}-{count}.mp4"
            outputs[number] = name
    return outputs


def _same_name(path: str) -> str:
    """Equal for names that are one file on some systems: case and composed letters do not count there."""
    return unicodedata.normalize("NFC", path).casefold()


def _preset(name: str | None, default: str, table: Path, number: int) -> tuple[str, str]:
    """(Shipped name or folder, SHA-256 of its configuration); a row's folder is relative to the CSV's."""
    if name and name not in list_presets():
        name = str(table.parent / name)
    try:
        folder = find_preset(name or default)
        return (name or default) if (name or default) in list_presets() else str(folder.resolve()), _checksum(folder)
    except DawnError as error:
        raise type(error)(f"{table}, row {number}, column preset: {error}" if name else str(error)) from error


@lru_cache
def _configuration_sha256(path: Path, size: int, changed_ns: int) -> str:
    return file_sha256(path)


def _checksum(folder: Path) -> str:
    path = folder / "config.json"
    status = path.stat()
    return _configuration_sha256(path, status.st_size, status.st_mtime_ns)


def digest(job: Job) -> str:
    """Compute the checksum of all that a job depends on.

    It changes with the row, the preset, and size or time of an input file (also one that is missing). It stays if the
    whole folder moves.
    """
    turned = job.row.model_dump(mode="json", exclude_defaults=True, exclude={"output", "preset"})
    facts: list[Any] = [turned, job.preset_sha256]
    for path in job.files:
        facts.append(None)
        with suppress(OSError, ValueError):
            status = path.stat()
            facts[-1] = [status.st_size, status.st_mtime_ns]
    return sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
