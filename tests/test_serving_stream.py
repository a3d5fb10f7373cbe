"""A film that is written twice at once: whole, and as fragments that can be shown while it is made."""

from __future__ import annotations

import errno
import io
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from conftest import example_sound, write_wav
from dawn.errors import OutputError
from dawn.media import VideoWriter, read_speech
from dawn.rendering.draw import DECODE_BATCH
from dawn.structs import Speech


class Sink(io.RawIOBase):
    """Keeps what is written to it, as far as there is room."""

    def __init__(self, room: int = 1 << 30) -> None:
        self.data, self.boxes, self.room = b"", [], room

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        data = bytes(data)
        if len(self.data) + len(data) > self.room:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.boxes.append(data[4:8])
        self.data += data
        return len(data)


@pytest.fixture(scope="module")
def speech(tmp_path_factory: pytest.TempPathFactory) -> Speech:
    """3 s of the example recording."""
    samples, rate_hz = example_sound()
    return read_speech(write_wav(tmp_path_factory.mktemp("speech") / "s.wav", samples[: 3 * rate_hz], rate_hz))


def picture(index: int) -> np.ndarray:
    """A bright bar that moves over noise."""
    frame = np.random.default_rng(1).integers(0, 90, (64, 64, 3)).astype(np.uint8)
    frame[:, index % 60 : index % 60 + 4] = 230
    return frame


def decoded(data: bytes) -> tuple[list[Fraction], list[np.ndarray], np.ndarray | None]:
    with av.open(io.BytesIO(data)) as container:
        frames = list(container.decode(video=0))
    with av.open(io.BytesIO(data)) as container:
        if not container.streams.audio:
            return [f.pts * f.time_base for f in frames], [f.to_ndarray(format="rgb24") for f in frames], None
        sound = list(container.decode(audio=0))
    assert sound[0].pts == 0
    return (
        [f.pts * f.time_base for f in frames],
        [f.to_ndarray(format="rgb24") for f in frames],
        np.concatenate([s.to_ndarray()[0] for s in sound]),
    )


@pytest.mark.parametrize("suffix", [".mp4", ".mov"])
def test_fragments_hold_the_same_film(tmp_path: Path, speech: Speech, suffix: str) -> None:
    sink, metadata = Sink(), {"comment": "AI-generated video"}
    with VideoWriter(tmp_path / f"out{suffix}", 64, 64, speech, metadata=metadata, stream=sink) as writer:
        assert sink.boxes == [b"ftyp", b"moov"]
        for index in range(DECODE_BATCH):
            writer.write(picture(index))
        # Something can be shown as soon as the first frames are decoded.
        times, pictures, sound = decoded(sink.data)
        assert times == [Fraction(i, 25) for i in range(len(times))] and len(times) >= DECODE_BATCH // 2
        assert sound is not None and abs(len(sound) / 48000 - len(times) / 25) < 0.1
        for index in range(DECODE_BATCH, speech.frame_count):
            writer.write(picture(index))
    whole = decoded((tmp_path / f"out{suffix}").read_bytes())
    times, pictures, sound = decoded(sink.data)
    assert times == whole[0] == [Fraction(i, 25) for i in range(speech.frame_count)]
    assert all((one == other).all() for one, other in zip(pictures, whole[1], strict=True))
    assert sound is not None and whole[2] is not None and len(sound) == len(whole[2])
    error, level = (np.square(part[2048:]).mean() for part in (sound - whole[2], whole[2]))
    assert error < level / 1000
    assert set(sink.boxes[2:]) == {b"moof"} and len(sink.boxes) > 75 / 8
    with av.open(io.BytesIO(sink.data)) as container:
        assert container.metadata["comment"] == metadata["comment"]


def test_without_sound(tmp_path: Path) -> None:
    sink = Sink()
    with VideoWriter(tmp_path / "out.mp4", 64, 64, stream=sink) as writer:
        for index in range(12):
            writer.write(picture(index))
    times, _, sound = decoded(sink.data)
    assert times == [Fraction(i, 25) for i in range(12)] and sound is None


@pytest.mark.parametrize("room", [10, 3000, 20_000])
def test_a_full_disk_leaves_no_video(tmp_path: Path, speech: Speech, room: int) -> None:
    with (
        pytest.raises(OutputError, match="no space") as error,
        VideoWriter(tmp_path / "out.mp4", 64, 64, speech, stream=Sink(room)) as writer,
    ):
        for index in range(speech.frame_count):
            writer.write(picture(index))
    assert len(str(error.value).splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_files_that_nobody_follows_are_as_before(tmp_path: Path, speech: Speech) -> None:
    """Only a film that is streamed pays for it: B-frames and look-ahead stay otherwise."""
    kinds = {}
    for name, stream in (("plain", None), ("streamed", Sink())):
        with VideoWriter(tmp_path / f"{name}.mp4", 64, 64, speech, stream=stream) as writer:
            for index in range(40):
                writer.write(picture(index))
        with av.open(str(tmp_path / f"{name}.mp4")) as container:
            kinds[name] = {frame.pict_type for frame in container.decode(video=0)}
    assert av.video.frame.PictureType.B in kinds["plain"] - kinds["streamed"]
