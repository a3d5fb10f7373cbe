"""One row's video, made in this process."""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path

from dawn.apps.batch.jobs import Job
from dawn.apps.batch.journal import Result
from dawn.apps.surfaces import TABLE
from dawn.errors import DawnError
from dawn.media.files import output_error
from dawn.media.motion_json import load_motion
from dawn.pipeline import Dawn

MAX_MODELS = 4
"""Presets that are kept loaded at a time."""


@lru_cache(maxsize=MAX_MODELS)
def _model(preset: str, preset_sha256: str, device: str) -> Dawn:
    return Dawn.from_pretrained(preset, device)


def make(job: Job, job_digest: str, path: Path, device: str) -> Result:
    """Make one row's video at ``path``; whatever is wrong with the row is in the result."""
    start = time.perf_counter()
    frames, error = 0, None
    try:
        motion = load_motion(job.files[2]) if job.row.motion_in else None
        video = _model(job.preset, job.preset_sha256, device)(*job.files[:2], motion=motion, **job.row.arguments())
        make_folder(path)
        video.save(path)
        frames = len(video)
    except Exception as cause:  # the other rows must go on
        reason = str(cause) if isinstance(cause, DawnError) else f"unexpected {type(cause).__name__}: {cause}"
        error = TABLE.reworded(" ".join(reason.split()))
    return Result(
        row=job.number,
        output=job.output,
        state="failed" if error else "done",
        digest=job_digest,
        frames=frames,
        seconds=round(time.perf_counter() - start, 3),
        error=error,
    )


def make_folder(path: Path) -> None:
    """The folder that ``path`` will be in. Raises OutputError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise output_error(path, error) from error
