"""Whose files are where: a folder for every open page, removed when the page is gone."""

from __future__ import annotations

import contextlib
import logging
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dawn.apps.studio.session import Session

log = logging.getLogger(__name__)

PREFIX = "dawn-studio-"
ALIVE = "alive"
"""A file that a running studio touches, so that another can tell what a killed one left."""
STALE_S = 3600.0
SWEEP_S = 15.0
LEAVE_S = 180.0
"""A page that has lost its connection may come back within this time: telephones go to sleep."""


class Sessions:
    """All open pages by Gradio's session hash. Everything lies under ``root``, a fresh folder that only this user may read.

    Gradio puts uploads there too, each in a folder named by its content, from where a session takes them.
    """

    def __init__(
        self, make: Callable[[Path], Session], keep_s: float, leave_s: float = LEAVE_S, sweep_s: float = SWEEP_S
    ) -> None:
        """make: a new session in a folder. keep_s: of an open page that is not used. leave_s: of one that is gone."""
        _remove_stale()
        self.root = Path(tempfile.mkdtemp(prefix=PREFIX)).resolve()
        self._pages = self.root / "pages"
        self._pages.mkdir()
        self._make, self._keep_s, self._leave_s = make, keep_s, leave_s
        self._lock = threading.Lock()
        self._open: dict[str, Session] = {}
        self._used: dict[str, float] = {}
        self._left: dict[str, float] = {}
        self._stop = threading.Event()
        self._touch()
        self._sweeper = threading.Thread(target=self._sweep_often, args=(sweep_s,), name="studio-sweep", daemon=True)
        self._sweeper.start()

    def of(self, key: str) -> Session:
        """The session of a page, which counts as used now."""
        with self._lock:
            self._left.pop(key, None)
            self._used[key] = time.monotonic()
            if key not in self._open:
                self._open[key] = self._make(Path(tempfile.mkdtemp(dir=self._pages)))
            return self._open[key]

    def upload(self, name: str) -> Path:
        """Path of an upload. One that is none of ours, whatever a browser may have sent, becomes one that does not exist."""
        path = Path(name).resolve()
        mine = self.root in path.parents and self._pages not in path.parents and path.name != ALIVE
        return path if mine else self.root / "upload" / path.name

    def seen(self, key: str) -> None:
        """The page is open, whether used or not."""
        with self._lock:
            self._left.pop(key, None)

    def left(self, key: str) -> None:
        """The page has gone, or has lost its connection."""
        with self._lock:
            if key in self._open:
                self._left[key] = time.monotonic()

    def sweep(self) -> None:
        """Close what has been left for long or was not used for longer, and remove uploads that nobody took."""
        now = time.monotonic()
        with self._lock:
            gone = [key for key, since in self._left.items() if now - since > self._leave_s]
            gone += [
                key
                for key, since in self._used.items()
                if now - since > self._keep_s and key not in gone and not self._open[key].busy
            ]
            closing = [self._open.pop(key) for key in gone]
            for key in gone:
                self._used.pop(key, None)
                self._left.pop(key, None)
        for session in closing:
            session.close()
        for folder in self.root.iterdir():
            with contextlib.suppress(OSError):
                if folder.is_dir() and folder != self._pages and time.time() - folder.stat().st_mtime > self._leave_s:
                    shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Close all sessions and remove every file."""
        self._stop.set()
        with self._lock:
            closing = list(self._open.values())
            self._open.clear()
        for session in closing:
            session.close()
        shutil.rmtree(self.root, ignore_errors=True)

    def _touch(self) -> None:
        with contextlib.suppress(OSError):
            (self.root / ALIVE).touch()

    def _sweep_often(self, sweep_s: float) -> None:
        while not self._stop.wait(sweep_s):
            self._touch()
            try:
                self.sweep()
            except Exception:
                log.exception("the studio could not tidy up")


def _remove_stale() -> None:
    """What studios left that were killed: photographs and voices must not stay."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        with contextlib.suppress(OSError):
            if time.time() - (folder / ALIVE).stat().st_mtime > STALE_S:
                shutil.rmtree(folder, ignore_errors=True)
