"""Video in: any file to RGB frames at an exact, constant rate, one at a time."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.stream import Disposition
from av.video.reformatter import Colorspace, Interpolation, VideoReformatter

from dawn.errors import VideoError
from dawn.media.files import Closable, FilePath, decode, open_container, quote
from dawn.structs import FPS, ImageArray

MAX_FRAME_PIXELS = 4096 * 2304
MAX_VIDEO_S = 1800.0
HD_HEIGHT_PX = 720
"""Untagged video from this height on is BT.709, below it BT.601, as players assume."""

_UNSPECIFIED_COLORSPACE = 2
_SCALING = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT


class VideoReader(Closable):
    """Read frames (height, width, 3) uint8 RGB, contiguous and upright, resampled to exactly ``fps`` by timestamps.

    Output frame i shows the source frame nearest to i / fps after the first one, so variable rates keep their timing.
    One frame is in memory at a time: iterate once, as a context manager. ``max_frames`` ends the reading early.

    Raises:
        VideoError: The file is missing or damaged, has no moving picture, or is over ``max_pixels`` or
            ``max_duration_s``.
    """

    def __init__(
        self,
        path: FilePath,
        fps: int | Fraction = FPS,
        max_frames: int | None = None,
        max_pixels: int = MAX_FRAME_PIXELS,
        max_duration_s: float = MAX_VIDEO_S,
    ) -> None:
        self.fps = Fraction(fps)
        self._convert = VideoReformatter()
        self._path, self._max_frames, self._max_duration_s = path, max_frames, max_duration_s
        self._container = open_container(path, VideoError, "video")
        try:
            self._stream = self._pick_stream(max_pixels)
            self._frames = decode(self._container, self._stream, path, VideoError)
            first = next(self._frames, None)
            if first is None:
                raise VideoError(f"video {quote(path)} has no frame that can be decoded; make or download it again")
            self._first: av.VideoFrame | None = first
            self._scaled: tuple[int, int] = (_square_width(first.width, self._stream.sample_aspect_ratio), first.height)
            self._quarter_turns = round(first.rotation / 90) % 4
        except BaseException:
            self._container.close()
            raise
        upright: tuple[int, int] = self._scaled[::-1] if self._quarter_turns % 2 else self._scaled
        self.width, self.height = upright

    def close(self) -> None:
        """Close the file. May be called twice."""
        self._frames = iter(())
        self._container.close()

    def __iter__(self) -> Iterator[ImageArray]:
        for index, (frame, image) in enumerate(self._hold_frames()):
            if self._max_frames is not None and index >= self._max_frames:
                return
            if index > self._max_duration_s * self.fps:
                raise VideoError(f"video {quote(self._path)} is longer than {self._max_duration_s:g} s; cut it")
            if not image:
                image.append(self._to_rgb(frame))
            # Each frame is the caller's own: a held picture must not change when an earlier one is drawn on.
            yield image[0].copy()

    def _hold_frames(self) -> Iterator[tuple[av.VideoFrame, list[ImageArray]]]:
        """Yield for every output instant the frame to show, with a slot that keeps its pixels while it is held."""
        index = 0
        held: tuple[av.VideoFrame, list[ImageArray]] | None = None
        held_s = end_s = Fraction(0)
        for time_s, duration_s, frame in self._read_timed():
            if held is not None:
                middle_s = (held_s + time_s) / 2
                while index / self.fps < middle_s:
                    yield held
                    index += 1
            held, held_s, end_s = (frame, []), time_s, time_s + duration_s
        assert held is not None
        # The last frame lasts to its end; half a period of slack rounds the length to whole output frames.
        while index == 0 or index / self.fps < end_s - 1 / (2 * self.fps):
            yield held
            index += 1

    def _read_timed(self) -> Iterator[tuple[Fraction, Fraction, av.VideoFrame]]:
        """Yield (seconds since the first frame, duration, frame) with strictly rising times."""
        step_s = 1 / Fraction(self._stream.average_rate or self._stream.guessed_rate or self.fps)
        start_s: Fraction | None = None
        last_s: Fraction | None = None
        frame = self._first
        self._first = None
        while frame is not None:
            base = frame.time_base or Fraction(0)
            expected_s = Fraction(0) if last_s is None else last_s + step_s
            time_s = frame.pts * base if frame.pts is not None and base else expected_s
            if last_s is None or time_s > last_s:
                start_s = time_s if start_s is None else start_s
                last_s = time_s
                yield time_s - start_s, frame.duration * base or step_s, frame
            frame = next(self._frames, None)

    def _pick_stream(self, max_pixels: int) -> Any:
        """Return the first video stream that is not the cover picture of a song."""
        streams = [s for s in self._container.streams.video if not s.disposition & Disposition.attached_pic]
        if not streams or streams[0].codec_context is None:
            raise VideoError(f"{quote(self._path)} has no moving picture that can be decoded; give a video file")
        stream = streams[0]
        pixels = stream.codec_context.width * stream.codec_context.height
        if pixels > max_pixels:
            size = f"{stream.codec_context.width} x {stream.codec_context.height}"
            raise VideoError(f"video {quote(self._path)} is {size} px, over {max_pixels / 1e6:g} megapixels; scale it")
        stream.thread_type = "AUTO"
        return stream

    def _to_rgb(self, frame: av.VideoFrame) -> ImageArray:
        """Convert, scale to the size of the first frame, turn upright: (height, width, 3)."""
        untagged_hd = frame.colorspace == _UNSPECIFIED_COLORSPACE and frame.height >= HD_HEIGHT_PX
        rgb = self._convert.reformat(
            frame,
            *self._scaled,
            format="rgb24",
            src_colorspace=Colorspace.ITU709 if untagged_hd else None,
            interpolation=_SCALING,
            threads=1,
        ).to_ndarray()
        return np.ascontiguousarray(np.rot90(rgb, self._quarter_turns))


def read_video(path: FilePath, fps: int | Fraction = FPS, max_frames: int | None = None) -> Iterator[ImageArray]:
    """Yield the frames of ``VideoReader(path, fps, max_frames)``, then close the file.

    Raises:
        VideoError: As ``VideoReader``.
    """
    with VideoReader(path, fps, max_frames) as reader:
        yield from reader


def _square_width(width: int, aspect: Fraction | None) -> int:
    """Return the width in square pixels: DV and old TV video is stored stretched.

    Absurd ratios are damage and are ignored.
    """
    if not aspect or not Fraction(1, 4) <= aspect <= 4:
        return width
    return max(1, round(width * aspect))
