"""The rows of a batch as tasks of a Ray cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from dawn.apps.batch.jobs import Job, digest
from dawn.apps.batch.journal import Result
from dawn.apps.batch.work import make, make_folder
from dawn.apps.surfaces import TABLE
from dawn.errors import ConfigError, DawnError, OutputError, missing_extra
from dawn.media.files import output_error

RETRIES = 3
"""How often a row whose worker died is given to another one."""


def made_on_ray(jobs: Sequence[Job], out: Path, device: str, address: str) -> Generator[Result, None, None]:
    """Rows as Ray tasks, in the order in which they are finished.

    Workers write to a folder beside the results and the caller's process moves what is whole: a worker that is killed
    leaves nothing, and its row is run again, ``RETRIES`` times.
    """
    ray = _connected(address)
    staging = out / f".dawn-{secrets.token_hex(6)}"
    try:
        make_folder(staging / "row")
        task = ray.remote(max_retries=RETRIES, num_cpus=1, num_gpus=_gpus(ray, device))(make)
        waiting = {}
        for job in jobs:
            path = (staging / f"{job.number}{Path(job.output).suffix}").resolve()
            checksum = digest(job)
            placed = replace(job, files=tuple(file.resolve() for file in job.files))
            waiting[task.remote(placed, checksum, path, device)] = (job, checksum, path)
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            job, checksum, path = waiting.pop(ready)
            try:
                result: Result = ray.get(ready)
                if result.state == "done":
                    _move(path, out / job.output)
            except (ray.exceptions.RayError, DawnError) as cause:
                reason = str(cause) if isinstance(cause, DawnError) else f"the worker failed: {str(cause)[-300:]}"
                result = Result(
                    row=job.number,
                    output=job.output,
                    state="failed",
                    digest=checksum,
                    seconds=0,
                    error=TABLE.reworded(" ".join(reason.split())),
                )
            yield result
    except (ray.exceptions.RayError, ConnectionError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(
            f"Ray at {address}: the cluster is lost ({reason}); the same command goes on from here"
        ) from error
    finally:
        ray.shutdown()
        shutil.rmtree(staging, ignore_errors=True)


def _connected(address: str) -> Any:
    """``ray``, connected. Raises ConfigError."""
    try:
        import ray
    except ModuleNotFoundError as error:
        raise missing_extra("ray", "ray") from error
    before = signal.getsignal(signal.SIGTERM)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        options |= {"include_dashboard": False, "object_store_memory": 100 << 20}
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigError(f"Ray at {address}: no Ray cluster there ({reason}); give local or HOST:PORT") from error
    finally:
        with suppress(ValueError):  # ray puts its own in its place; ValueError: not the main thread
            signal.signal(signal.SIGTERM, before)
    return ray


def _gpus(ray: Any, device: str) -> int:
    """Whether a row takes one of the cluster's GPUs. Raises ConfigError where it would wait for ever."""
    there = ray.cluster_resources().get("GPU", 0) >= 1
    if device not in ("auto", "cpu", "cuda") or (device == "cuda" and not there):
        has = "some" if there else "none"
        raise ConfigError(f"`device={device}`: Ray hands the GPUs out, and has {has}; give auto or cpu")
    return int(there and device != "cpu")


def _move(path: Path, target: Path) -> None:
    make_folder(target)
    try:
        path.replace(target.resolve())
    except FileNotFoundError as error:
        raise OutputError(
            f"{path} is not there for the workers and here alike: the folder must be on a shared file system"
        ) from error
    except OSError as error:
        raise output_error(target, error) from error
