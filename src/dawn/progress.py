"""What a run tells of itself: progress, the time of each stage, the peak of memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

Progress = Callable[[str, int, int], None]
"""(stage, done, total); the total is 0 where it is not known."""


def ignore_progress(stage: str, done: int, total: int) -> None:
    """Do nothing: the progress callback of a caller who gives none."""


@contextmanager
def progress_bar(hidden: bool) -> Iterator[Progress]:
    """Hand out a callback (stage, done, total) that draws one bar a stage on stderr; ``hidden`` draws none."""
    bars: dict[str, tqdm] = {}

    def show(stage: str, done: int, total: int) -> None:
        if hidden:
            return
        if stage not in bars:
            for bar in bars.values():
                bar.close()
            bars[stage] = tqdm(total=total or None, desc=stage, leave=False, file=sys.stderr)
        bars[stage].update(done - bars[stage].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


@dataclass
class Stopwatch:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add the time spent inside to the stage's seconds."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def peak_memory_mib() -> float | None:
    """Measure the peak memory of this process so far; None where the system does not tell."""
    with suppress(OSError, StopIteration), Path("/proc/self/status").open(encoding="ascii") as lines:  # Linux
        # There ``getrusage`` starts from the memory of the parent process.
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / (1 << 10)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
