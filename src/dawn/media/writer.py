"""Video out: frames and the original sound to MP4, whole or not at all."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Self

import av
import numpy as np
from av.container import OutputContainer
from av.video.reformatter import ColorRange, Colorspace, Interpolation, VideoReformatter

from dawn.errors import OutputError
from dawn.media.audio import SoundTrack
from dawn.media.files import FilePath, create_beside, output_error, publish, quote
from dawn.structs import FPS, ImageArray, Speech

SUFFIXES = (".mp4", ".m4v", ".mov")
METADATA_KEYS = frozenset({"title", "artist", "comment", "copyright", "date", "description", "genre", "synopsis"})
"""What the MP4 muxer stores; it drops other keys without a word."""

AAC_BITS_PER_CHANNEL = 160_000
AAC_CODER = "fast"
"""FFmpeg's default, "twoloop", spoils single blocks of voiced sound.

Signal to noise in the worst block of a synthetic vowel at 128 and 160 kbit/s: "twoloop" 8.8 and 31 dB, "fast" 33 and
54 dB.
"""

KEYFRAME_INTERVAL_S = 2
FRAGMENT_S = 0.16
"""Length of a fragment of a streamed film: half of the frames that the pipeline decodes together."""
PROMPT_CODER = "rc-lookahead=0:sync-lookahead=0:bframes=0"
PROMPT_THREADS = 2
"""For a streamed film: packets come 2 frames after their pictures instead of 47.

At the same ``crf`` 221 frames of 128 px take 13.1 instead of 9.9 kB/s (37.7 instead of 38.1 dB). 125 frames of 512 px
take 88.7 instead of 67.1 kB/s (40.9 instead of 41.3 dB).
"""
MIN_SIDE_PX, MAX_SIDE_PX = 16, 8192
_BT709 = 1
_LIMITED_RANGE = 1
_CONVERSION = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INP


class VideoWriter:
    """Write H.264 (yuv420p, BT.709) and AAC to MP4 with the index in front; frame i is shown at exactly i / fps.

    The sound comes from ``speech.path`` at its original quality, else from ``speech.samples``. It is interleaved as the
    frames come, and cut or padded to end with the last one. The file is written under a temporary name beside ``path``
    and takes its place in ``close``. After any exception nothing is left, and an older file is untouched.

        with VideoWriter("out.mp4", 256, 256, speech) as writer:
            for frame in frames:          # (256, 256, 3) uint8, speech.frame_count of them
                writer.write(frame)

    ``stream`` gets the same packets as fragmented MP4 while the film is made: the header at once, then each fragment in
    one ``write``. The caller closes it. A header without an index cannot take the encoder's run-up off the sound: the
    first 21 ms fade in. Everything is shown and heard at its time.

    Raises:
        OutputError: The file cannot be created, which shows before any work is lost; later, the disk is full.
    """

    def __init__(
        self,
        path: FilePath,
        width: int,
        height: int,
        speech: Speech | None = None,
        fps: int | Fraction = FPS,
        crf: int = 18,
        metadata: Mapping[str, str] | None = None,
        stream: BinaryIO | None = None,
    ) -> None:
        _check_request(path, width, height, speech, metadata or {})
        self.width, self.height, self.fps = width, height, Fraction(fps)
        self.frames_written = 0
        self._path = path
        self._sound: SoundTrack | None = None
        self._sound_samples = 0
        self._convert = VideoReformatter()
        self._container: OutputContainer | None = None
        self._live: OutputContainer | None = None
        self._final, self._temporary = create_beside(path, SUFFIXES)
        # Also for a writer that is dropped without close, and at the exit of the interpreter.
        self._remove = weakref.finalize(self, self._temporary.unlink, missing_ok=True)
        with self._abort_on_error():
            self._sound = SoundTrack(speech) if speech is not None else None
            self._open_streams(crf, metadata or {}, prompt=stream is not None)
            if stream is not None:
                self._open_live(stream, metadata or {})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def write(self, frame: ImageArray) -> None:
        """Append one frame (height, width, 3) uint8 RGB and the sound that belongs to it.

        Raises:
            OutputError: The file cannot be written.
        """
        assert self._container is not None, "the writer is closed"
        shape = (self.height, self.width, 3)
        assert frame.shape == shape, f"a frame of {frame.shape}, not {shape}"
        assert frame.dtype == np.uint8, f"a frame of {frame.dtype}, not uint8"
        with self._abort_on_error():
            picture = self._convert.reformat(
                av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"),
                format="yuv420p",
                dst_colorspace=Colorspace.ITU709,
                src_color_range=ColorRange.JPEG,
                dst_color_range=ColorRange.MPEG,
                interpolation=_CONVERSION,
                threads=1,
            )
            picture.pts, picture.time_base = self.frames_written, 1 / self.fps
            self._mux(self._video.encode(picture))
            self.frames_written += 1
            self._write_sound()

    def close(self) -> None:
        """Finish the file and give it its name. Do nothing when already closed.

        Raises:
            OutputError: There is no frame, or the file cannot be written.
        """
        if self._container is None:
            return
        with self._abort_on_error():
            if self.frames_written == 0:
                raise OutputError(f"cannot write {quote(self._path)}: there is no frame to write")
            self._mux(self._video.encode())
            if self._sound is not None:
                self._mux(self._audio.encode())
                self._sound.close()
            if self._live is not None:
                self._live.close()
            # Writes what is buffered and moves the index to the front: a full disk may show only here.
            self._container.close()
            publish(self._temporary, self._final)
        self._container = self._live = None
        self._remove.detach()

    def abort(self) -> None:
        """Give up: remove the unfinished file. An older file of the final name stays. May be called twice."""
        try:
            # The trailer is written here and may fail once more, as on a full disk; that file is thrown away anyhow.
            with suppress(Exception):
                if self._container is not None:
                    self._container.close()
            with suppress(Exception):
                if self._live is not None:
                    self._live.close()
            with suppress(Exception):
                if self._sound is not None:
                    self._sound.close()
        finally:
            self._container = self._live = None
            self._remove()

    @contextmanager
    def _abort_on_error(self) -> Iterator[None]:
        """Abort on any exception, Ctrl-C too.

        Raises:
            OutputError: The file system or the encoder failed.
        """
        try:
            yield
        except BaseException as cause:
            self.abort()
            if isinstance(cause, (OSError, av.FFmpegError)):
                raise output_error(self._path, cause) from cause
            raise

    def _open_streams(self, crf: int, metadata: Mapping[str, str], prompt: bool) -> None:
        kind = "mov" if self._final.suffix.lower() == ".mov" else "mp4"
        self._container = av.open(f"file:{self._temporary}", "w", format=kind, options={"movflags": "+faststart"})
        self._container.metadata.update(metadata)
        options = {"crf": str(crf)} | ({"x264-params": PROMPT_CODER} if prompt else {})
        self._video = self._container.add_stream("libx264", rate=self.fps, options=options)
        self._video.width, self._video.height, self._video.pix_fmt = self.width, self.height, "yuv420p"
        # PyAV asks for slice threads, which cost x264 quality.
        self._video.thread_type = "FRAME"
        context = self._video.codec_context
        if prompt:
            context.thread_count = PROMPT_THREADS
        context.time_base = 1 / self.fps
        context.gop_size = round(KEYFRAME_INTERVAL_S * self.fps)
        context.colorspace = context.color_primaries = context.color_trc = _BT709
        context.color_range = _LIMITED_RANGE
        if self._sound is not None:
            rate_hz, layout = self._sound.rate_hz, self._sound.layout
            self._audio = self._container.add_stream("aac", rate_hz, {"aac_coder": AAC_CODER}, layout=layout)
            self._audio.bit_rate = AAC_BITS_PER_CHANNEL * (1 if self._sound.layout == "mono" else 2)
        # The header now and not at the first frame: whatever is refused is refused before the work begins.
        self._container.start_encoding()

    def _open_live(self, stream: BinaryIO, metadata: Mapping[str, str]) -> None:
        """Open the second container, whose streams take the packets of the first one's encoders."""
        options = {
            "movflags": "+empty_moov+default_base_moof+skip_trailer",
            "frag_duration": str(round(FRAGMENT_S * 1e6)),
        }
        self._live = av.open(stream, "w", format="mp4", options=options)
        self._live.metadata.update(metadata)
        tracks: list[Any] = [self._video] if self._sound is None else [self._video, self._audio]
        self._live_track = {track.index: self._live.add_stream_from_template(track) for track in tracks}
        self._live.start_encoding()

    def _mux(self, packets: Iterable[av.Packet[Any]]) -> None:
        assert self._container is not None
        for packet in packets:
            # Before the first container turns the time stamps into its own.
            if self._live is not None and packet.pts is not None and packet.pts >= 0:
                copy = av.Packet(bytes(packet))
                copy.pts, copy.dts, copy.duration = packet.pts, packet.dts, packet.duration
                copy.time_base, copy.is_keyframe = packet.time_base, packet.is_keyframe
                copy.stream = self._live_track[packet.stream.index]
                self._live.mux(copy)
            self._container.mux(packet)

    def _write_sound(self) -> None:
        """Write sound up to the end of the last frame; silence when the source is over."""
        if self._sound is None:
            return
        rate_hz = self._sound.rate_hz
        due = round(self.frames_written * rate_hz / self.fps)
        block = self._sound.read(due - self._sound_samples)
        frame = av.AudioFrame.from_ndarray(block, format="fltp", layout=self._sound.layout)
        frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), self._sound_samples
        self._mux(self._audio.encode(frame))
        self._sound_samples = due


def _check_request(path: FilePath, width: int, height: int, speech: Speech | None, metadata: Mapping[str, str]) -> None:
    if width % 2 or height % 2 or not MIN_SIDE_PX <= min(width, height) <= max(width, height) <= MAX_SIDE_PX:
        raise OutputError(
            f"video of {width} x {height} px; both sides must be even, from {MIN_SIDE_PX} to {MAX_SIDE_PX} px"
        )
    if unknown := sorted(set(metadata) - METADATA_KEYS):
        raise OutputError(f"metadata {unknown} cannot be stored in MP4; use some of {sorted(METADATA_KEYS)}")
    if speech is not None and speech.path is not None:
        with suppress(OSError, ValueError):
            if Path(path).exists() and Path(path).samefile(speech.path):
                raise OutputError(f"{quote(path)} is the recording itself; choose another name for the video")
