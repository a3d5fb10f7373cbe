"""What is known of each job, in memory and in one SQLite table that outlives the server."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from dawn.errors import ConfigError, OutputError
from dawn.media.files import output_error, quote
from dawn.options import VideoOptions
from dawn.structs import Strict

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
State = Literal["queued", "running", "done", "failed", "cancelled"]
STATES: tuple[State, ...] = ("queued", "running", "done", "failed", "cancelled")
ENDED = ("done", "failed", "cancelled")
ID_PATTERN = r"^[0-9a-f]{32}$"


class JobOptions(VideoOptions):
    """What a form asks of a video."""

    model_config = ConfigDict(strict=True)


class Failure(Strict):
    """Why a job failed: the error's type, its one line, and the HTTP status it stands for."""

    type: str
    message: str
    status: int = Field(500, ge=400, le=599)


class Job(Strict):
    """One job. Times are seconds since 1970; ``received`` is the end of the upload. ``stages``: seconds of each stage."""

    id: str = Field(pattern=ID_PATTERN)
    options: JobOptions
    state: State = "queued"
    received: float
    started: float | None = None
    first_byte: float | None = None
    first_picture: float | None = None
    finished: float | None = None
    attempts: int = 0
    frames: int = 0
    stages: dict[str, float] = Field(default_factory=dict)
    error: Failure | None = None


class Store:
    """The jobs, oldest first. Every method may be called from any thread; those that only look never wait.

    Raises ConfigError when the folder cannot be used, is in use by another server, or was written by a newer version.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "jobs.sqlite"
        self._lock = threading.RLock()
        self._unsaved: set[str] = set()
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir(mode=0o700, exist_ok=True)
            # A folder that was there keeps its rights; what is put into it is private all the same.
            os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            self._table = sqlite3.connect(self.path, timeout=1, isolation_level=None, check_same_thread=False)
        except (OSError, sqlite3.Error) as error:
            raise ConfigError(
                f"data folder {quote(folder)} cannot be used ({error}): give another with `data`"
            ) from error
        try:
            self._jobs = self._opened()
        except sqlite3.Error as error:
            self._table.close()
            busy = "locked" in str(error)
            reason = (
                "is used by another dawn serve; stop that one" if busy else f"cannot be read ({error}); move it away"
            )
            raise ConfigError(f"{quote(self.path)} {reason}, or give another folder with `data`") from error
        except BaseException:
            self._table.close()
            raise

    def _opened(self) -> dict[str, Job]:
        # Exclusive: a second server on the same folder is refused, and the lock goes with the process, however that ends.
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", "synchronous=FULL"):
            self._table.execute(f"PRAGMA {pragma}").fetchone()
        self._table.execute("BEGIN IMMEDIATE")
        version = self._table.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, SCHEMA_VERSION):
            raise ConfigError(
                f"{quote(self.path)} has records of version {version}, this is version {SCHEMA_VERSION}: "
                "update dawn, or give another folder with `data`"
            )
        self._table.execute(
            "CREATE TABLE IF NOT EXISTS jobs (id TEXT PRIMARY KEY, received REAL NOT NULL, record TEXT NOT NULL)"
        )
        self._table.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
        self._table.execute("COMMIT")
        jobs = {}
        for number, record in self._table.execute("SELECT id, record FROM jobs ORDER BY received, id").fetchall():
            try:
                jobs[number] = Job.model_validate_json(record)
            except ValidationError as error:
                log.warning("%s: the record of job %s cannot be read and is passed over: %s", self.path, number, error)
        return jobs

    def close(self) -> None:
        """Close the table of jobs."""
        with self._lock:
            self._table.close()

    def get(self, number: str) -> Job | None:
        """Find a job by its number; None if there is none."""
        return self._jobs.get(number)

    def all(self) -> list[Job]:
        """List all jobs."""
        return list(self._jobs.values())

    def queued(self) -> list[Job]:
        """List the jobs that wait."""
        return [job for job in self.all() if job.state == "queued"]

    def add(self, job: Job) -> None:
        """Raises OutputError if it cannot be kept; then there is no such job."""
        with self._lock:
            try:
                self._write(job)
            except sqlite3.Error as error:
                raise _refused(self.path, error) from error
            self._jobs[job.id] = job

    def change(self, number: str, *, unless: tuple[str, ...] = (), **values: Any) -> Job | None:
        """The changed job; None, and nothing changes, if it is gone or in a state of ``unless``.

        It holds at once; what the disk does not take now is written with a later change.
        """
        with self._lock:
            job = self._jobs.get(number)
            if job is None or job.state in unless:
                return None
            job = self._jobs[number] = Job.model_validate({**dict(job), **values})
            self._unsaved.add(number)
            self.flush()
            return job

    def remove(self, number: str) -> None:
        """Forget a job, also on disk; nothing happens if it is unknown."""
        with self._lock:
            if self._jobs.pop(number, None) is not None:
                self._unsaved.add(number)
                self.flush()

    def flush(self) -> None:
        """Write what is not written yet."""
        with self._lock:
            try:
                for number in sorted(self._unsaved):
                    if (job := self._jobs.get(number)) is not None:
                        self._write(job)
                    else:
                        self._table.execute("DELETE FROM jobs WHERE id = ?", (number,))
                    self._unsaved.discard(number)
            except sqlite3.Error as error:
                log.warning("%s; tried again later", _refused(self.path, error))

    def _write(self, job: Job) -> None:
        self._table.execute(
            "INSERT INTO jobs VALUES (?, ?, ?) ON CONFLICT (id) DO UPDATE SET record = excluded.record",
            (job.id, job.received, job.model_dump_json()),
        )


def _refused(path: Path, error: sqlite3.Error) -> OutputError:
    return output_error(path, OSError(f"{error}; free some space"))
