"""What the service answers: its JSON, and its refusals."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from dawn.apps.serving.records import Job, JobOptions, State
from dawn.apps.serving.service import Service, status_of
from dawn.apps.surfaces import FORM
from dawn.errors import DawnError
from dawn.structs import Strict


class ErrorLine(Strict):
    """What went wrong: ``type`` names the kind of error."""

    type: str
    message: str
    """One line: what is wrong, and what to do."""


class ErrorAnswer(Strict):
    """The body of every answer that is not a success."""

    error: ErrorLine


class Refusal(DawnError):
    """A request that is answered with an HTTP status of its own."""

    def __init__(self, status: int, kind: str, message: str, **headers: str) -> None:
        super().__init__(message)
        self.status, self.kind = status, kind
        self.headers = {name.replace("_", "-"): value for name, value in headers.items()}


def error_answer(error: DawnError) -> tuple[int, dict[str, Any], dict[str, str]]:
    """Status, body and headers."""
    line = FORM.reworded(" ".join(str(error).split()))
    if isinstance(error, Refusal):
        return error.status, error_body(error.kind, line), error.headers
    return status_of(error), error_body(type(error).__name__, line), {}


def error_body(kind: str, message: str) -> dict[str, Any]:
    """Make the body of an answer that reports an error, as ``ErrorAnswer`` declares it."""
    return {"error": {"type": kind, "message": message}}


class Timings(Strict):
    """Seconds since the end of the upload; null for what has not happened. ``stages``: seconds spent in each."""

    queued: float | None
    first_byte: float | None
    """Until the first byte of the film, which is its header."""
    first_picture: float | None
    """Until the first fragment of the film that shows something."""
    total: float | None
    stages: dict[str, float]


class Links(Strict):
    """Where a job and what it makes are found."""

    self: str
    result: str
    stream: str
    motion: str


class JobAnswer(Strict):
    """How far a job is."""

    id: str
    state: State
    stage: str | None = Field(
        description="What is done just now: prepare, motion, decode; null while it is not at work"
    )
    done: int
    total: int
    """Steps or frames of this stage; 0 while unknown."""
    frames: int
    """Of the finished video; 0 before."""
    position: int | None
    """Jobs before this one, the one at work included; null when it does not wait."""
    error: ErrorLine | None
    timings: Timings
    options: JobOptions
    links: Links


class JobList(Strict):
    """All jobs that the service keeps."""

    jobs: list[JobAnswer]


class Health(Strict):
    """What the service runs, and how many jobs wait."""

    status: str
    version: str
    preset: str
    model_loaded: bool
    queue_length: int
    max_queue: int


def job_answer(service: Service, job: Job) -> JobAnswer:
    """Describe a job as it stands now, with its place in the queue if it waits."""
    live = service.live
    if live is not None and (live.job.id != job.id or job.state != "running"):
        live = None
    position = None
    if job.state == "queued":
        before = [other.id for other in service.store.queued()]
        position = (before.index(job.id) if job.id in before else 0) + (service.live is not None)
    where = f"/v1/jobs/{job.id}"

    def since(moment: float | None) -> float | None:
        return None if moment is None else round(max(0.0, moment - job.received), 3)

    return JobAnswer(
        id=job.id,
        state=job.state,
        stage=live.stage if live else None,
        done=live.done if live else job.frames,
        total=live.total if live else job.frames,
        frames=job.frames,
        position=position,
        error=ErrorLine(type=job.error.type, message=job.error.message) if job.error else None,
        timings=Timings(
            queued=since(job.started),
            first_byte=since(live.first_byte if live else job.first_byte),
            first_picture=since(live.first_picture if live else job.first_picture),
            total=since(job.finished),
            stages=job.stages,
        ),
        options=job.options,
        links=Links(self=where, result=f"{where}/result", stream=f"{where}/result?stream=1", motion=f"{where}/motion"),
    )
