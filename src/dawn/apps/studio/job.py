"""One long piece of work that a page watches: it runs in a thread, tells how far it is, and can be cancelled."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from dawn.errors import DawnError
from dawn.structs import ImageArray

CANCELLED = "cancelled; nothing unfinished was kept"
log = logging.getLogger(__name__)


class Cancelled(Exception):
    """Raised inside the work when somebody has pressed Cancel."""


@dataclass(frozen=True)
class Progress:
    """How far a job is. total: 0 while unknown. left_s: None while it cannot be told. frame: the newest picture."""

    stage: str
    done: int = 0
    total: int = 0
    left_s: float | None = None
    frame: ImageArray | None = None


class Job:
    """Runs ``work(job)``. ``error`` is the one line to show: None after success."""

    def __init__(self, work: Callable[[Job], None]) -> None:
        self.progress = Progress("wait")
        self.error: str | None = None
        self._work = work
        self._stop, self._ended = threading.Event(), threading.Event()
        self._stage_began = time.monotonic()

    def start(self) -> None:
        """Run in a thread of its own. Call it once."""
        threading.Thread(target=self._run, name="studio-job", daemon=True).start()

    def _run(self) -> None:
        try:
            self._work(self)
        except Cancelled:
            self.error = CANCELLED
        except DawnError as error:
            self.error = str(error)
        except Exception as error:
            log.exception("a job of the studio failed")
            self.error = f"unexpected {type(error).__name__}: {error}"
        finally:
            self._ended.set()

    def report(self, stage: str, done: int, total: int, frame: ImageArray | None = None) -> None:
        """What the work calls now and then, a ``pipeline.Progress``. Raises Cancelled."""
        if self._stop.is_set() and not self.ended:
            raise Cancelled
        now = time.monotonic()
        if stage != self.progress.stage:
            self._stage_began = now
        left_s = (now - self._stage_began) / done * (total - done) if done > 1 and total else None
        self.progress = Progress(stage, done, total, left_s, frame if frame is not None else self.progress.frame)

    def cancel(self) -> None:
        """End soon. May be called at any time; after the end it does nothing."""
        if not self.ended:
            self._stop.set()

    @property
    def ended(self) -> bool:
        """Tell whether the job is over, however it ended."""
        return self._ended.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        """Wait for the end; True if it has come."""
        return self._ended.wait(seconds)
