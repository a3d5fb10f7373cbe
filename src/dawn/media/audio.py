"""Speech: any file with sound to 16 kHz mono, and the same sound at full quality for the written video."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any

import av
import numpy as np
from av.container import InputContainer
from av.filter import Graph
from numpy.typing import NDArray

from dawn.errors import AudioError
from dawn.media.files import Closable, FilePath, decode, open_container, quote
from dawn.structs import SPEECH_RATE_HZ, FloatArray, Speech

MIN_SPEECH_S = 0.2
MAX_SPEECH_S = 1800.0
SILENCE_PEAK = 1e-3
"""A recording that never gets above -60 dBFS counts as silent (a muted microphone, the wrong track)."""

MAX_OVERSHOOT = 16.0
"""Float samples a little over 1 are loud and are clipped; far over 1 they are integers stored as floats."""

MIN_RATE_HZ, MAX_RATE_HZ = 1_000, 384_000
MAX_ARRAY_CHANNELS = 16


def read_speech(path: FilePath, max_duration_s: float = MAX_SPEECH_S, allow_silence: bool = False) -> Speech:
    """Read the sound of an audio or video file: 16 kHz mono float32 within [-1, 1].

    ``duration_s`` is counted from the decoded samples, never taken from the container. Decoding stops at
    ``max_duration_s``, and only 16 kHz samples are kept.

    Raises:
        AudioError: The file is missing, damaged or without sound; or the sound is shorter than 0.2 s, too long, not
            finite, or silent throughout (unless ``allow_silence``).
    """
    with open_container(path, AudioError, "sound file") as container:
        clock = _Clock(decode(container, _sound_stream(container, path), path, AudioError))
        return _collect(clock, f"sound {quote(path)}", max_duration_s, allow_silence, str(path))


def speech_from_array(
    samples: NDArray[Any], rate_hz: int, max_duration_s: float = MAX_SPEECH_S, allow_silence: bool = False
) -> Speech:
    """Make speech from samples (L,) or (L, channels): floats within [-1, 1], or integers of full scale.

    Channels are averaged.

    Raises:
        AudioError: As ``read_speech``, and for odd shapes and rates.
    """
    samples = np.asarray(samples)
    if not MIN_RATE_HZ <= rate_hz <= MAX_RATE_HZ or int(rate_hz) != rate_hz:
        raise AudioError(f"sample rate {rate_hz} Hz; a whole number from {MIN_RATE_HZ} to {MAX_RATE_HZ} is needed")
    if samples.ndim not in (1, 2) or (samples.ndim == 2 and not 1 <= samples.shape[1] <= MAX_ARRAY_CHANNELS):
        raise AudioError(f"samples have shape {samples.shape}; (L,) or (L, channels) is needed")
    if samples.dtype.kind not in "iuf":
        raise AudioError(f"samples are of type {samples.dtype}; floats or integers are needed")
    if len(samples) > max_duration_s * rate_hz:
        raise _too_long_error("sound", max_duration_s)
    frames = _array_frames(samples, int(rate_hz))
    return _collect(_Clock(frames), "sound", max_duration_s, allow_silence, None)


class SoundTrack(Closable):
    """The sound of a ``Speech`` for the muxer: from its file at the original quality, else from its samples.

    ``rate_hz`` (44100 or 48000, what AAC players expect) and ``layout`` ("mono" or "stereo") follow the source.
    Use as a context manager or call ``close``.

    Raises:
        AudioError: The file has no sound that can be read.
    """

    def __init__(self, speech: Speech) -> None:
        self._container: InputContainer | None = None
        source_rate_hz, channels = SPEECH_RATE_HZ, 1
        if speech.path is None:
            frames = _array_frames(speech.samples, SPEECH_RATE_HZ)
        else:
            self._container = open_container(speech.path, AudioError, "sound file")
            try:
                stream = _sound_stream(self._container, speech.path)
            except AudioError:
                self._container.close()
                raise
            source_rate_hz, channels = stream.codec_context.sample_rate, stream.codec_context.layout.nb_channels
            frames = decode(self._container, stream, speech.path, AudioError)
        self.rate_hz = 44_100 if source_rate_hz and source_rate_hz % 11_025 == 0 else 48_000
        self.layout = "mono" if channels == 1 else "stereo"
        self._blocks = resample(frames, self.rate_hz, self.layout)
        self._left: FloatArray = np.zeros((1 if channels == 1 else 2, 0), np.float32)

    def read(self, count: int) -> FloatArray:
        """Return the next ``count`` samples, (channels, count) float32 within [-1, 1]; silence after the end."""
        parts, held = [self._left], self._left.shape[1]
        while held < count and (block := next(self._blocks, None)) is not None:
            parts.append(block)
            held += block.shape[1]
        sound = np.concatenate(parts, axis=1)
        if held < count:
            sound = np.pad(sound, ((0, 0), (0, count - held)))
        # A copy, or the view would keep every block alive that it was cut from.
        self._left = sound[:, count:].copy()
        return np.clip(sound[:, :count], -1, 1)

    def close(self) -> None:
        """Close the source file. May be called twice."""
        if self._container is not None:
            self._container.close()
            self._container = None


def resample(frames: Iterable[av.AudioFrame], rate_hz: int, layout: str) -> Iterator[FloatArray]:
    """Convert decoded frames to blocks (channels, n) float32 at ``rate_hz``; their format may change on the way.

    Only samples count: gaps in the time stamps neither cut nor stretch the sound.
    """
    source: tuple[int, str, str] | None = None
    graph: Graph | None = None
    for frame in frames:
        if frame.samples == 0:
            continue
        found = (frame.sample_rate, frame.format.name, frame.layout.name)
        if graph is None or found != source:
            if graph is not None:
                yield from _push(graph, None)
            source, graph = found, _resampling_graph(*found, rate_hz, layout)
        yield from _push(graph, frame)
    if graph is not None:
        yield from _push(graph, None)


def _resampling_graph(in_rate_hz: int, in_format: str, in_layout: str, rate_hz: int, layout: str) -> Graph:
    """Build a filter graph: ``av.AudioResampler`` offers no ``rematrix_maxval`` before PyAV 18."""
    graph = Graph()
    source = graph.add(
        "abuffer",
        f"sample_rate={in_rate_hz}:sample_fmt={in_format}:channel_layout={in_layout}:time_base=1/{in_rate_hz}",
    )
    # rematrix_maxval=1: by default a stereo file of floats (MP3, AAC) is summed 3 dB too loud and clips, while one of
    # integers (WAV) is not.
    convert = graph.add(
        "aresample", f"out_sample_rate={rate_hz}:out_sample_fmt=fltp:out_chlayout={layout}:rematrix_maxval=1"
    )
    sink = graph.add("abuffersink")
    source.link_to(convert)
    convert.link_to(sink)
    try:
        graph.configure()
    except av.FFmpegError as cause:
        raise AudioError(f"sound of {in_layout} cannot be mixed down; convert it to mono or stereo first") from cause
    return graph


def _push(graph: Graph, frame: av.AudioFrame | None) -> Iterator[FloatArray]:
    """Put one frame (or None: the end) into the graph and yield what is ready."""
    graph.push(frame)
    while True:
        try:
            block = graph.pull()
        except (av.BlockingIOError, av.EOFError):
            return
        assert isinstance(block, av.AudioFrame)
        yield block.to_ndarray().astype(np.float32, copy=False)


class _Clock:
    """Pass frames through and add up their exact length: source samples / source rate."""

    def __init__(self, frames: Iterable[av.AudioFrame]) -> None:
        self._frames = frames
        self.seconds = Fraction(0)

    def __iter__(self) -> Iterator[av.AudioFrame]:
        for frame in self._frames:
            self.seconds += Fraction(frame.samples, frame.sample_rate)
            yield frame


def _collect(clock: _Clock, name: str, max_duration_s: float, allow_silence: bool, path: str | None) -> Speech:
    """Decode to the end, checking as it goes, and build the ``Speech``."""
    blocks: list[FloatArray] = []
    peak = 0.0
    for block in resample(clock, SPEECH_RATE_HZ, "mono"):
        if clock.seconds > max_duration_s:
            raise _too_long_error(name, max_duration_s)
        # NaN fails the comparison too.
        highest = float(np.abs(block).max(initial=0.0))
        if not highest <= MAX_OVERSHOOT:
            reason = f"samples of {highest:g}, far over 1" if np.isfinite(highest) else "samples that are not finite"
            raise AudioError(f"{name} has {reason}, near {float(clock.seconds):.1f} s; export it again as 16-bit WAV")
        peak = max(peak, highest)
        blocks.append(np.clip(block[0], -1, 1))
    if clock.seconds > max_duration_s:
        raise _too_long_error(name, max_duration_s)
    if clock.seconds < Fraction(str(MIN_SPEECH_S)):
        raise AudioError(f"{name} lasts {float(clock.seconds):.3g} s; at least {MIN_SPEECH_S:g} s of speech are needed")
    if peak < SILENCE_PEAK and not allow_silence:
        level = f"{20 * np.log10(peak):.0f} dBFS" if peak > 0 else "digital silence"
        raise AudioError(f"{name} is silent throughout ({level}): record it again; or accept it: `allow_silence=True`")
    # The resampler's tail may be a few samples longer or shorter than the sound.
    wanted = round(clock.seconds * SPEECH_RATE_HZ)
    blocks.append(np.zeros(max(0, wanted - sum(map(len, blocks))), np.float32))
    return Speech(samples=np.concatenate(blocks)[:wanted], duration_s=float(clock.seconds), path=path)


def _too_long_error(name: str, max_duration_s: float) -> AudioError:
    return AudioError(f"{name} is longer than {max_duration_s:g} s ({max_duration_s / 60:g} min); cut it into parts")


def _sound_stream(container: InputContainer, path: FilePath) -> Any:
    """Return the audio stream that a player would choose."""
    stream = container.streams.best("audio")
    if stream is None:
        raise AudioError(f"{quote(path)} has no sound; give a recording, or a video that has an audio track")
    if stream.codec_context is None:
        raise AudioError(f"the sound of {quote(path)} is in an unknown codec; convert it to WAV or MP3")
    return stream


def _array_frames(samples: NDArray[Any], rate_hz: int) -> Iterator[av.AudioFrame]:
    """Yield samples (L,) or (L, channels) as mono float frames of one second."""
    for start in range(0, len(samples), rate_hz):
        block = samples[start : start + rate_hz]
        if block.dtype.kind in "iu":
            info = np.iinfo(block.dtype)
            middle = 0 if block.dtype.kind == "i" else (info.max + 1) / 2
            block = (block.astype(np.float64) - middle) / ((info.max - info.min + 1) / 2)
        if block.ndim == 2:
            block = block.mean(axis=1)
        with np.errstate(over="ignore"):
            mono = np.ascontiguousarray(block[None], dtype=np.float32)
        frame = av.AudioFrame.from_ndarray(mono, format="fltp", layout="mono")
        frame.sample_rate = rate_hz
        yield frame
