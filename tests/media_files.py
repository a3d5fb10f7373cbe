"""Synthetic sound, pictures and video for the tests of ``dawn.media``, and readers that share no code with it."""

from __future__ import annotations

import ctypes
import os
import struct
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from dawn.errors import DawnError
from dawn.media import VideoWriter
from dawn.structs import Speech

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}


def tone(rate_hz: int, seconds: float, level: float = 0.5, channels: int = 1) -> np.ndarray:
    """A 440 Hz sine, (L, channels) float64; the same in every channel."""
    count = round(rate_hz * seconds)
    wave = level * np.sin(2 * np.pi * 440 * np.arange(count) / rate_hz)
    return np.repeat(wave[:, None], channels, axis=1)


def write_sound(
    path: Path, samples: np.ndarray, rate_hz: int, codec: str = "pcm_s16le", sample_format: str = "s16", **options: str
) -> Path:
    """Encode (L, channels) floats; the container follows the suffix of ``path``."""
    scale = {"u8": 127.0, "s16": 32767.0, "s16p": 32767.0, "s32": 2147483647.0}.get(sample_format, 1.0)
    dtype = {"u8": np.uint8, "s16": np.int16, "s16p": np.int16, "s32": np.int32, "dbl": np.float64}
    layout = LAYOUTS[samples.shape[1]]
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate_hz, layout=layout, options=options)
        stream.format = sample_format
        with np.errstate(invalid="ignore"):
            data = (samples * scale + (128 if sample_format == "u8" else 0)).astype(
                dtype.get(sample_format, np.float32)
            )
        for start in range(0, len(data), rate_hz):
            block = data[start : start + rate_hz]
            packed = block.T if sample_format.endswith("p") else block.reshape(1, -1)
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(packed), format=sample_format, layout=layout)
            frame.sample_rate, frame.pts, frame.time_base = rate_hz, start, Fraction(1, rate_hz)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def write_video(
    path: Path, frames: Sequence[np.ndarray], times_ms: Sequence[int], sound: np.ndarray | None = None, **context: Any
) -> Path:
    """Lossless-looking H.264 with any time stamps; ``sound`` is (L, 1) at 48 kHz."""
    height, width = frames[0].shape[:2]
    last_ms = times_ms[-1] - times_ms[-2] if len(times_ms) > 1 else 40
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=1000, options={"crf": "1", "bf": "0"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv444p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for key, value in context.items():
            setattr(stream.codec_context, key, value)
        audio = container.add_stream("aac", 48000, {"aac_coder": "fast"}, layout="mono") if sound is not None else None
        for image, time_ms in zip(frames, times_ms, strict=True):
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts, frame.time_base = time_ms, Fraction(1, 1000)
            for packet in stream.encode(frame):
                packet.duration = last_ms
                container.mux(packet)
        for packet in stream.encode():
            packet.duration = last_ms
            container.mux(packet)
        if audio is not None and sound is not None:
            frame = av.AudioFrame.from_ndarray(sound.T.astype(np.float32).copy(), format="fltp", layout="mono")
            frame.sample_rate, frame.pts, frame.time_base = 48000, 0, Fraction(1, 48000)
            container.mux(audio.encode(frame))
            container.mux(audio.encode())
    return path


def grey_frames(levels: Sequence[int], size: tuple[int, int] = (32, 48)) -> list[np.ndarray]:
    """(H, W, 3) uint8 frames that are told apart by their level."""
    return [np.full((*size, 3), level, np.uint8) for level in levels]


def atoms(path: Path) -> list[tuple[str, int]]:
    """Top-level atoms of an MP4 file: (name, size)."""
    data, found, at = path.read_bytes(), [], 0
    while at < len(data):
        size, name = struct.unpack(">I4s", data[at : at + 8])
        if size == 1:
            (size,) = struct.unpack(">Q", data[at + 8 : at + 16])
        found.append((name.decode(), size))
        at += size
    assert at == len(data), "the last atom does not end with the file"
    return found


def decoded(path: Path) -> dict[str, Any]:
    """Decode everything: times of the pictures, samples (channels, L) and the end of the sound in seconds."""
    result: dict[str, Any] = {"times": [], "pixels": [], "samples": None, "audio_end": None}
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            assert frame.pts is not None and frame.time_base is not None
            result["times"].append(frame.pts * frame.time_base)
            result["pixels"].append(frame.to_ndarray(format="rgb24"))
    with av.open(str(path)) as container:
        if container.streams.audio:
            frames = list(container.decode(audio=0))
            # A player puts each block where its stamp says: priming shows as a start below zero or skipped samples.
            last = frames[-1]
            result["audio_start"] = frames[0].pts * frames[0].time_base
            result["audio_end"] = last.pts * last.time_base + Fraction(last.samples, last.sample_rate)
            result["samples"] = np.concatenate([f.to_ndarray() for f in frames], axis=1)
            result["rate_hz"] = last.sample_rate
    return result


def turn_by_matrix(path: Path, matrix: tuple[int, int, int, int]) -> None:
    """Overwrite the display matrix (a, b, c, d) of the first track, as phones write it."""
    data = bytearray(path.read_bytes())
    at = data.index(b"tkhd") + 4 + 40
    a, b, c, d = (value * 65536 for value in matrix)
    data[at : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)


@contextmanager
def small_disk(folder: Path, size_kb: int) -> Iterator[bool]:
    """A real file system of that size at ``folder``; gives False where mounting is not allowed."""
    folder.mkdir()
    mount = getattr(ctypes.CDLL(None, use_errno=True), "mount", None)
    name = os.fsencode(folder)
    if mount is None or mount(b"tmpfs", name, b"tmpfs", 0, f"size={size_kb}k".encode()) != 0:
        yield False
        return
    try:
        yield True
    finally:
        ctypes.CDLL(None).umount2(name, 2)


def write_clip(path: Path, speech: Speech | None, frames: int | None = None, **options: Any) -> Path:
    """A film with the writer under test: 32 px, as long as the speech unless ``frames`` says otherwise."""
    count = frames if frames is not None else speech.frame_count if speech is not None else 0
    with VideoWriter(path, 32, 32, speech, **options) as writer:
        for index in range(count):
            writer.write(np.full((32, 32, 3), 40 + index % 160, np.uint8))
    return path


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def one_line(error: pytest.ExceptionInfo[DawnError]) -> str:
    message = str(error.value)
    assert message and "\n" not in message
    return message


def text_file(folder: Path) -> Path:
    (folder / "text.txt").write_text("these are words, not sound\n" * 50)
    return folder / "text.txt"


def empty_file(folder: Path) -> Path:
    (folder / "empty.wav").touch()
    return folder / "empty.wav"
