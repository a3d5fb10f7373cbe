"""What work costs: seconds of its stages, and memory."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stopwatch:
    """Seconds spent in each stage."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start


def peak_memory_mib() -> float | None:
    """Peak memory of this process so far; None where the system does not tell."""
    with suppress(OSError, StopIteration), Path("/proc/self/status").open(encoding="ascii") as lines:  # Linux
        # What ``getrusage`` says there begins with the memory of the process that this one was started by.
        return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / (1 << 10)
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
