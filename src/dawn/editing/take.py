"""A take: a video whose drawn frames are kept on disk, so that after an edit only what changed is drawn anew."""

from __future__ import annotations

import os
import secrets
import shutil
import threading
import weakref
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from dawn.editing.edits import BoolArray, Region, blend, changed_frames
from dawn.errors import ConfigError, OutputError
from dawn.media.files import FilePath, output_error, quote
from dawn.rendering.draw import DECODE_BATCH
from dawn.structs import ImageArray, Motion
from dawn.video import Video

HISTORY = 20
"""Motions that ``undo`` can go back by."""
SPARE_BYTES = 64 << 20
"""Left free on the disk, for the finished video and for others."""
PREFIX = ".dawn-take-"


class Take:
    """A video with its frames, which are drawn once and stay until their motion changes.

        with Take(video, folder) as take:
            for index, frame in take.draw(): ...       # everything
            changed = take.change(scale_head(take.motion, Region(1.2, 2.0), 0.3))
            for index, frame in take.draw(): ...       # only frames that changed
            take.save("out.mp4")

    Frames (height, width, 3) uint8 take height x width x 3 bytes each in one file of the folder, which ``close``, leaving the
    ``with``, or dropping the take removes. Methods may be called from several threads; a ``draw`` that is under way when the
    motion changes ends.
    """

    def __init__(self, video: Video, folder: FilePath) -> None:
        """Raises OutputError if the folder cannot be written or its disk has not room enough."""
        self.video, self.height, self.width = video, video.height, video.width
        self._drawn = np.zeros(len(video), np.bool_)
        self._history: deque[Motion] = deque(maxlen=HISTORY)
        self._lock = threading.RLock()
        self._path = Path(folder) / f"{PREFIX}{secrets.token_hex(6)}.frames"
        shape = (len(video), self.height, self.width, 3)
        try:
            _reserve(self._path, int(np.prod(shape)))
            self._frames: ImageArray | None = np.memmap(self._path, np.uint8, "r+", shape=shape)
        except BaseException as cause:
            self._path.unlink(missing_ok=True)
            if isinstance(cause, OSError):
                raise output_error(folder, cause) from cause
            raise
        self._remove = weakref.finalize(self, self._path.unlink, missing_ok=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self.video)

    @property
    def motion(self) -> Motion:
        """Give the motion as it stands after all edits."""
        return self.video.motion

    @property
    def missing(self) -> int:
        """Frames that have to be drawn before the video is whole."""
        return int((~self._drawn).sum())

    @property
    def can_undo(self) -> bool:
        """Tell whether there is an edit to undo."""
        return bool(self._history)

    def draw(self) -> Iterator[tuple[int, ImageArray]]:
        """Draw what is missing or changed, in order, and keep it. May be given up at any frame and called again.

        Ends early when the motion changes meanwhile. Raises ConfigError after ``close``.
        """
        with self._lock:
            self._kept()
            video, wanted = self.video, ~self._drawn
        for index, frame in video.frames(wanted):
            with self._lock:
                if self.video is not video:
                    return
                self._kept()[index] = frame
                self._drawn[index] = True
            yield index, frame

    def frame(self, index: int) -> ImageArray:
        """One frame (height, width, 3), drawn first if need be. Raises ConfigError for one that is not there."""
        if not 0 <= index < len(self):
            raise ConfigError(f"frame {index}: the video has frames 0 to {len(self) - 1}")
        with self._lock:
            if not self._drawn[index]:
                batch = np.arange(len(self)) // DECODE_BATCH == index // DECODE_BATCH
                for place, frame in self.video.frames(~self._drawn & batch):
                    self._kept()[place] = frame
                    self._drawn[place] = True
            return np.array(self._kept()[index])

    def change(self, motion: Motion) -> BoolArray:
        """Take this motion instead; (T,) true where frames have to be drawn anew, all others stay bit by bit.

        Raises MotionError for another length or motion space.
        """
        with self._lock:
            old = self.motion
            changed = self._show(motion)
            if changed.any():
                self._history.append(old)
            return changed

    def undo(self) -> BoolArray:
        """Back to the motion before the last change, as ``change``. Raises ConfigError if there is none."""
        with self._lock:
            if not self._history:
                raise ConfigError("there is no change to take back")
            return self._show(self._history.pop())

    def reroll(self, region: Region, seed: int) -> BoolArray:
        """Another seed's motion in the region, as ``change``. Raises ConfigError (region, seed; motion of another video)."""
        region.frames(len(self))
        with self._lock:
            return self.change(blend(self.motion, self.video.regenerate(seed=seed).motion, region))

    def save(self, path: FilePath) -> Path:
        """Draw what is missing and write the MP4, as ``Video.save``. The motion cannot change meanwhile."""
        with self._lock:
            for _ in self.draw():
                pass
            return self.video.save(Path(path), iter(self._kept()))

    def close(self) -> None:
        """Remove the frames. May be called twice."""
        with self._lock:
            self._frames = None
            self._drawn[:] = False
            self._remove()

    def _show(self, motion: Motion) -> BoolArray:
        self._kept()
        video = self.video.with_motion(motion)
        changed = changed_frames(self.motion, motion)
        if changed.any():
            self.video = video
            self._drawn[changed] = False
        return changed

    def _kept(self) -> ImageArray:
        """All frames (T, height, width, 3)."""
        if self._frames is None:
            raise ConfigError("this take is closed: make another")
        return self._frames


def _reserve(path: Path, size: int) -> None:
    """Create a file of this size whose room on the disk is taken. Raises OutputError, OSError."""
    free = shutil.disk_usage(path.parent).free
    if size + SPARE_BYTES > free:
        raise OutputError(
            f"cannot keep the frames in {quote(path.parent)}: they take {size / 1e6:.0f} MB, "
            f"and {free / 1e6:.0f} are free; free some, choose another folder or a smaller size"
        )
    with path.open("xb") as file:
        # A file with holes would be as quick, but writing to a hole on a full disk through memory ends the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
