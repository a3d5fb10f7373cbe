"""The work itself: a queue of jobs, one thread that makes their videos with one model, and their files.

A job's folder holds ``portrait`` and ``speech`` until it has ended, ``stream.mp4`` while its video is made, and then
``out.mp4`` and ``motion.json``.
"""

from __future__ import annotations

import asyncio
import io
import logging
import os
import re
import secrets
import shutil
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from dawn.apps.serving.metrics import Metrics
from dawn.apps.serving.records import ENDED, ID_PATTERN, Failure, Job, JobOptions, Store
from dawn.apps.serving.settings import ServeSettings
from dawn.apps.surfaces import FORM
from dawn.errors import ConfigError, DawnError, InputError, OutputError
from dawn.media.files import output_error
from dawn.media.motion_json import save_motion
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker

log = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""A job that ended the server so often is not tried again."""
MEAN_OVER_JOBS = 20
FIRST_GUESS_S = 10.0
MAX_RETRY_S = 600
STOP_TIMEOUT_S = 30.0
PAUSE_S = 1.0
MAX_PROBES = 2
"""Uploads that are looked into at once: a large picture takes some hundred megabytes."""
RESULT, STREAM, MOTION, INPUTS = "out.mp4", "stream.mp4", "motion.json", ("portrait", "speech")


class Interrupted(BaseException):
    """Thrown into the pipeline: its job is cancelled, or the service stops. No DawnError, which would be a failure."""


@dataclass
class Live:
    """The job at work, as its thread last saw it. ``streamed``: bytes of ``stream.mp4`` so far."""

    job: Job
    stage: str = "prepare"
    done: int = 0
    total: int = 0
    streamed: int = 0
    first_byte: float | None = None
    first_picture: float | None = None
    cancelled: bool = False


class GrowingFile(io.RawIOBase):
    """A file that others read while it is written; notes when the first byte and the first fragment are there."""

    def __init__(self, path: Path, live: Live) -> None:
        self._file, self._live = path.open("wb", buffering=0), live

    def writable(self) -> bool:
        """Say that it can be written to, as ``io`` asks."""
        return True

    def write(self, data: Any) -> int:
        """Write all of the data and note when the first byte and the first fragment came; returns the bytes written."""
        view = memoryview(data).cast("B")
        fragment = bytes(view[4:8]) == b"moof"
        sent = 0
        while sent < len(view):
            sent += self._file.write(view[sent:]) or 0
        self._live.streamed += sent
        self._live.first_byte = self._live.first_byte or time.time()
        if fragment:
            self._live.first_picture = self._live.first_picture or time.time()
        return sent

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        super().close()


class Service:
    """Jobs of one data folder. ``start`` begins to work, ``stop`` puts what is at work back into the queue."""

    def __init__(self, settings: ServeSettings, model: Any = None) -> None:
        """model: a loaded ``Dawn``; None loads it in ``start``. Raises ConfigError: the data folder cannot be used."""
        self.settings, self.model = settings, model
        self.store = Store(settings.folder)
        self.metrics = Metrics(self.store)
        self.live: Live | None = None
        self.stopping = False
        self.readers: dict[str, int] = {}
        """Clients that follow a job's video."""
        self.probes = asyncio.Semaphore(MAX_PROBES)
        self._reserved = 0
        self._seconds: list[float] = []
        self._wake = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="dawn-worker", daemon=True)
        try:
            self._recover()
        except OSError as error:
            self.store.close()
            raise ConfigError(f"{output_error(settings.folder, error)}; or give another folder with `data`") from error

    # ------------------------------------------------------------------------------------------------------ life

    def start(self) -> None:
        """Load the model and begin. Raises as ``Dawn.from_pretrained``."""
        if self.model is None:
            self.model = Dawn.from_pretrained(self.settings.preset, self.settings.device)
        self.metrics.loaded.set(1)
        self._thread.start()

    def stop(self) -> None:
        """End the work soon; the job at work is queued for the next start. May be called twice."""
        self.stopping = True
        with self._wake:
            self._wake.notify_all()
        if self._thread.is_alive():
            self._thread.join(STOP_TIMEOUT_S)
        self.store.close()

    @property
    def works(self) -> bool:
        """Tell whether the worker runs and is not about to stop."""
        return self._thread.is_alive() and not self.stopping

    def _recover(self) -> None:
        """After a start: what a killed server left half done is queued again, what belongs to no job is removed."""
        for name in ("incoming", "jobs"):
            parent = self.settings.folder / name
            parent.mkdir(mode=0o700, exist_ok=True)
            for folder in parent.iterdir():
                ours = re.match(ID_PATTERN, folder.name)
                if ours and (name == "incoming" or self.store.get(folder.name) is None):
                    shutil.rmtree(folder, ignore_errors=True)
        for job in self.store.all():
            folder = self.folder(job.id)
            if job.state == "done":
                _remove(folder / name for name in (*INPUTS, STREAM))
            elif job.state in ENDED:
                shutil.rmtree(folder, ignore_errors=True)
            else:
                _remove(path for path in folder.glob("*") if path.name not in INPUTS)
                self._queue_again(job)

    def _queue_again(self, job: Job) -> None:
        failure = None
        if job.attempts >= MAX_ATTEMPTS:
            failure = Failure(
                type="ServiceError",
                message=f"this job ended the service {job.attempts} times and is not tried "
                "again; make the portrait smaller or the speech shorter",
            )
        elif not all((self.folder(job.id) / name).is_file() for name in INPUTS):
            failure = Failure(type="ServiceError", message="the uploaded files are gone; send them again")
        if failure:
            self.store.change(job.id, state="failed", error=failure, finished=time.time())
            shutil.rmtree(self.folder(job.id), ignore_errors=True)
        elif job.state == "running":
            self.store.change(job.id, state="queued", started=None, first_byte=None, first_picture=None)

    def sweep(self) -> None:
        """Remove finished jobs that are older than they are kept, and write what a full disk did not take before."""
        oldest = time.time() - self.settings.keep_hours * 3600
        for job in self.store.all():
            if job.finished is not None and job.finished < oldest:
                self.remove(job.id)
        self.store.flush()

    # ----------------------------------------------------------------------------------------------------- queue

    def folder(self, number: str) -> Path:
        """Give the folder of a job."""
        return self.settings.folder / "jobs" / number

    def reserve(self) -> int:
        """Take a place in the queue before an upload is read: 0, or after how many seconds to try again if there is none."""
        with self._wake:
            if self._reserved + len(self.store.queued()) < self.settings.max_queue:
                self._reserved += 1
                return 0
        mean = sum(self._seconds) / len(self._seconds) if self._seconds else FIRST_GUESS_S
        return max(1, min(MAX_RETRY_S, round(mean)))

    def release(self) -> None:
        """Give the place back: the upload is in the queue, or refused."""
        with self._wake:
            self._reserved -= 1

    def incoming(self) -> Path:
        """A new empty folder for an upload. Raises OutputError."""
        folder = self.settings.folder / "incoming" / secrets.token_hex(16)
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:
            raise output_error(folder, error) from error
        return folder

    def submit(self, uploaded: Path, options: JobOptions, received: float) -> Job:
        """Queue a job whose inputs lie in a folder of ``incoming``. Raises OutputError; then there is no job."""
        job = Job(id=secrets.token_hex(16), options=options, received=received)
        try:
            uploaded.rename(self.folder(job.id))
        except OSError as error:
            raise output_error(uploaded, error) from error
        try:
            self.store.add(job)
        except OutputError:
            shutil.rmtree(self.folder(job.id), ignore_errors=True)
            raise
        with self._wake:
            self._wake.notify_all()
        return job

    def cancel(self, number: str) -> Job | None:
        """The cancelled job; None if there is none, or it has ended."""
        with self._wake:
            job = self.store.change(number, unless=ENDED, state="cancelled", finished=time.time())
            running = self.live is not None and self.live.job.id == number
            if job and running and self.live:
                self.live.cancelled = True
        if job and not running:
            shutil.rmtree(self.folder(number), ignore_errors=True)
            self.metrics.ended(job)
        return job

    def remove(self, number: str) -> None:
        """Forget an ended job and delete its files."""
        self.store.remove(number)
        shutil.rmtree(self.folder(number), ignore_errors=True)

    # ------------------------------------------------------------------------------------------------------ work

    def _work(self) -> None:
        with (
            suppress(Exception),
            FaceTracker(),
        ):  # loads what the first job would wait for; what is wrong will be that job's
            pass
        while not self.stopping:
            try:
                self._turn()
            except Exception:  # the service outlives every job
                log.exception("a fault between two jobs")
                time.sleep(PAUSE_S)

    def _turn(self) -> None:
        """One job from the queue, or a short wait for one."""
        with self._wake:
            waiting = self.store.queued()
            if not waiting or self.stopping:
                self._wake.wait(PAUSE_S)
                return
            job = self.store.change(
                waiting[0].id, unless=ENDED, state="running", started=time.time(), attempts=waiting[0].attempts + 1
            )
            if job is None:
                return
            live = self.live = Live(job)
        try:
            self._end(live, self._run(live))
        finally:
            self.live = None

    def _run(self, live: Live) -> dict[str, Any]:
        """Make the video; what to note of the job."""
        folder, start = self.folder(live.job.id), time.perf_counter()
        try:
            frames, stages = self._make(live, folder)
            self._seconds = [*self._seconds, time.perf_counter() - start][-MEAN_OVER_JOBS:]
            return {"state": "done", "frames": frames, "stages": stages}
        except Interrupted:
            return {"state": "queued"}
        except DawnError as error:
            return {"state": "failed", "error": failure(error, folder)}
        except Exception as error:
            log.exception("job %s", live.job.id)
            return {"state": "failed", "error": failure(error, folder)}

    def _make(self, live: Live, folder: Path) -> tuple[int, dict[str, float]]:
        def progress(stage: str, done: int, total: int) -> None:
            if self.stopping or live.cancelled:
                raise Interrupted
            live.stage, live.done, live.total = stage, done, total

        video = self.model(*(folder / name for name in INPUTS), progress=progress, **live.job.options.arguments())
        progress("decode", 0, len(video))
        save_motion(video.motion, folder / MOTION)
        try:
            stream = GrowingFile(folder / STREAM, live)
        except OSError as error:
            raise output_error(folder / STREAM, error) from error
        with stream:
            video.save(folder / RESULT, stream=cast(BinaryIO, stream))
        return len(video), {stage: round(seconds, 4) for stage, seconds in video.watch.seconds.items()}

    def _end(self, live: Live, values: dict[str, Any]) -> None:
        """Note what became of the job, unless it was cancelled meanwhile, and remove the files that it needs no more."""
        folder, number = self.folder(live.job.id), live.job.id
        with self._wake:
            if values["state"] == "queued":
                # A stop is not the job's fault.
                job = self.store.change(number, unless=ENDED, **values, started=None, attempts=live.job.attempts - 1)
            else:
                job = self.store.change(
                    number,
                    unless=ENDED,
                    **values,
                    finished=time.time(),
                    first_byte=live.first_byte,
                    first_picture=live.first_picture,
                )
        known = job or self.store.get(number)
        if known and known.state in ENDED:
            self.metrics.ended(known)
            log.info("job %s: %s", number, known.error.message if known.error else known.state)
        if job is None or job.state == "failed":
            shutil.rmtree(folder, ignore_errors=True)
        else:
            _remove(folder / name for name in (STREAM, *(INPUTS if job.state == "done" else (RESULT, MOTION))))


def failure(error: BaseException, folder: Path) -> Failure:
    """The error in one line, without the server's paths."""
    known = isinstance(error, DawnError)
    line = str(error) if known else f"unexpected {type(error).__name__}: {error}"
    line = FORM.reworded(" ".join(line.replace(f"{folder}{os.sep}", "").split()))
    return Failure(type=type(error).__name__ if known else "ServiceError", message=line, status=status_of(error))


def status_of(error: BaseException) -> int:
    """400 for files, 422 for options, 507 for a full disk, else 500."""
    for kind, status in ((InputError, 400), (ConfigError, 422), (OutputError, 507)):
        if isinstance(error, kind):
            return status
    return 500


def _remove(paths: Any) -> None:
    for path in paths:
        with suppress(OSError):
            path.unlink()
