"""A batch from its CSV to its results."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import closing
from pathlib import Path

from dawn import DEFAULT_PRESET
from dawn.apps.batch.cluster import made_on_ray
from dawn.apps.batch.jobs import Job, digest, read_jobs
from dawn.apps.batch.journal import Journal, Result
from dawn.apps.batch.work import make
from dawn.engines.load import pick_device
from dawn.progress import Progress


def run_batch(
    table: Path,
    out: Path,
    preset: str = DEFAULT_PRESET,
    device: str = "auto",
    retry_failed: bool = False,
    ray_address: str | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Make every row's video that is missing or changed; one result a row, in the order of the CSV.

    table: the CSV; its paths are relative to its own folder. out: folder of the videos, made if need be. preset: of rows
    that name none. ray_address: a Ray cluster, or "local" for one on this machine; ``out`` and the inputs must then be
    on a file system that all workers share under the same paths. A row that fails does not stop the others.

    Raises InputError (the CSV cannot be read), ConfigError (what it says cannot be used; Ray, device) before any work,
    OutputError where the folder cannot be written.
    """
    jobs = read_jobs(table, out, preset)
    if ray_address is None:
        pick_device(device)
    with Journal(out) as journal:
        results: dict[str, Result] = {}
        for job in jobs:
            found = journal.entries.get(job.output)
            if found and found.digest == digest(job) and _stands(found, out, retry_failed):
                results[job.output] = found.model_copy(update={"row": job.number, "kept": True})
        missing = [job for job in jobs if job.output not in results]
        made = (
            _made_here(missing, out, device) if ray_address is None else made_on_ray(missing, out, device, ray_address)
        )
        with closing(made):
            for result in made if missing else ():
                journal.append(result)
                results[result.output] = result
                if progress:
                    progress("rows", len(results), len(jobs))
    return [results[job.output] for job in jobs]


def _stands(found: Result, out: Path, retry_failed: bool) -> bool:
    return not retry_failed if found.state == "failed" else (out / found.output).is_file()


def _made_here(jobs: Sequence[Job], out: Path, device: str) -> Generator[Result, None, None]:
    for job in jobs:
        yield make(job, digest(job), out / job.output, device)
