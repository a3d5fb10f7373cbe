"""Video out and in: nothing half-written, exact time stamps, every kind of broken file."""

from __future__ import annotations

import errno
import os
import stat
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

import dawn.media.writer
from dawn.errors import AudioError, OutputError, VideoError
from dawn.media import (
    VideoReader,
    VideoWriter,
    read_speech,
    read_video,
    save_png,
    speech_from_array,
)
from media_files import (
    atoms,
    decoded,
    empty_file,
    grey_frames,
    noise,
    one_line,
    small_disk,
    text_file,
    tone,
    turn_by_matrix,
    write_clip,
    write_sound,
    write_video,
)

# --- video out -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov"])
def test_codecs_tags_and_layout(tmp_path: Path, suffix: str) -> None:
    speech = read_speech(write_sound(tmp_path / "in.wav", tone(44100, 2.0, channels=2), 44100))
    path = write_clip(tmp_path / f"out{suffix}", speech, metadata={"comment": "AI-generated with dawn", "title": "t"})
    names = [name for name, _ in atoms(path)]
    assert names.index("moov") < names.index("mdat")
    with av.open(str(path)) as container:
        video, audio = container.streams.video[0], container.streams.audio[0]
        assert (video.codec.name, video.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert video.average_rate == 25 and video.start_time == 0
        context = video.codec_context
        assert (context.colorspace, context.color_primaries, context.color_trc, context.color_range) == (1, 1, 1, 1)
        assert (audio.codec.name, audio.rate, audio.layout.name) == ("aac", 44100, "stereo")
        assert container.metadata["comment"] == "AI-generated with dawn"
        assert container.metadata["title"] == "t"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(["in.wav", path.name])


def test_frames_decide_the_length(tmp_path: Path) -> None:
    speech = speech_from_array(tone(16000, 2.0)[:, 0], 16000)
    for frames in (1, 20, 75):
        result = decoded(write_clip(tmp_path / "out.mp4", speech, frames))
        assert len(result["times"]) == frames
        assert abs(result["audio_end"] - Fraction(frames, 25)) < Fraction(1, 25)
    assert np.abs(result["samples"][0, 2 * 48000 + 4000 :]).max() < 1e-3


def test_sound_keeps_its_quality(tmp_path: Path) -> None:
    # FFmpeg's default AAC coder spoils blocks of sounds with harmonics; the mean over the clip would not show it.
    rate_hz = 48000
    seconds = np.arange(rate_hz * 3) / rate_hz
    pitch = np.cumsum(2 * np.pi * (120 + 20 * np.sin(2 * np.pi * 0.7 * seconds)) / rate_hz)
    voice = sum(np.sin(k * pitch) / k for k in range(1, 25))[:, None] * 0.3
    speech = read_speech(write_sound(tmp_path / "in.wav", voice, rate_hz))
    heard = decoded(write_clip(tmp_path / "out.mp4", speech))["samples"][0][: len(voice)]
    blocks = voice[: len(voice) // 1024 * 1024, 0].reshape(-1, 1024)
    error = heard[: blocks.size].reshape(-1, 1024) - blocks
    worst_db = 10 * np.log10((blocks**2).sum(1) / (error**2).sum(1)).min()
    assert worst_db > 25


def test_video_without_sound(tmp_path: Path) -> None:
    result = decoded(write_clip(tmp_path / "out.mp4", None, 7))
    assert len(result["times"]) == 7 and result["samples"] is None


def test_sound_and_picture_are_interleaved(tmp_path: Path) -> None:
    speech = read_speech(write_sound(tmp_path / "in.wav", tone(48000, 8.0), 48000))
    latest, worst = {"video": 0.0, "audio": 0.0}, 0.0
    with av.open(str(write_clip(tmp_path / "out.mp4", speech))) as container:
        for packet in container.demux():
            if packet.dts is not None:
                latest[packet.stream.type] = float(packet.dts * packet.time_base)
                worst = max(worst, abs(latest["video"] - latest["audio"]))
    assert latest["audio"] > 7.5 and worst < 1.0


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("older", [None, b"older film"])
def test_interrupted_write_leaves_nothing(tmp_path: Path, error: type[BaseException], older: bytes | None) -> None:
    path = tmp_path / "out.mp4"
    if older:
        path.write_bytes(older)
    with pytest.raises(error), VideoWriter(path, 32, 32, speech_from_array(tone(16000, 1.0), 16000)) as writer:
        for _ in range(5):
            writer.write(noise(32, 32))
        raise error
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([older] if older else [])


def test_interrupt_inside_the_encoder_and_forgotten_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forgotten = VideoWriter(tmp_path / "out.mp4", 32, 32)
    forgotten.write(noise(32, 32))
    del forgotten
    assert not list(tmp_path.iterdir())
    writer = VideoWriter(tmp_path / "out.mp4", 32, 32, speech_from_array(tone(16000, 1.0), 16000))

    def interrupt(count: int) -> np.ndarray:
        raise KeyboardInterrupt

    monkeypatch.setattr(writer._sound, "read", interrupt)
    with pytest.raises(KeyboardInterrupt):
        writer.write(noise(32, 32))
    assert not list(tmp_path.iterdir())


def test_no_frames_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="no frame"), VideoWriter(tmp_path / "out.mp4", 32, 32):
        pass
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("size_kb", [0, 4, 64, 400])
def test_full_disk(tmp_path: Path, size_kb: int) -> None:
    disk = tmp_path / "disk"
    with small_disk(disk, max(size_kb, 4)) as mounted:
        if not mounted:
            pytest.skip("mounting is not allowed here")
        if size_kb == 0:
            (disk / "filler").write_bytes(b"x" * 4096)
        with pytest.raises(OutputError, match="no space") as error, VideoWriter(disk / "out.mp4", 128, 128) as writer:
            for index in range(60):
                writer.write(noise(128, 128, index))
        one_line(error)
        assert not list(disk.glob(".*")) and not list(disk.glob("*.mp4"))
        if size_kb == 0:
            with pytest.raises(OutputError, match="no space"):
                save_png(disk / "a.png", noise(64, 64))
            assert [p.name for p in disk.iterdir()] == ["filler"]


@pytest.mark.parametrize("stage", ["publish", "header"])
def test_full_disk_at_either_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    if stage == "publish":
        monkeypatch.setattr(dawn.media.writer, "publish", fail)
    else:
        monkeypatch.setattr(dawn.media.writer.av, "open", fail)
    with pytest.raises(OutputError, match="no space") as error:
        write_clip(tmp_path / "out.mp4", None, 3)
    one_line(error)
    assert not list(tmp_path.iterdir())


def test_outputs_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "dir.mp4").mkdir()
    (tmp_path / "file").write_text("x")
    (tmp_path / "old.mp4").write_text("x")
    cases = [
        (tmp_path / "none" / "a.mp4", "does not exist"),
        (tmp_path / "file" / "a.mp4", "not a folder"),
        (tmp_path / "dir.mp4", "is a folder"),
        (tmp_path / "a.avi", "must end in"),
        (tmp_path, "must end in"),
        (tmp_path / f"{'x' * 300}.mp4", "too long"),
    ]
    if Path("/sys/kernel").is_dir():
        cases.append((Path("/sys/a.mp4"), "permission|read-only"))
    for path, message in cases:
        with pytest.raises(OutputError, match=message) as error:
            VideoWriter(path, 64, 64)
        one_line(error)
    for width, height in ((63, 64), (64, 63), (0, 0), (-2, 64), (10_000, 64)):
        with pytest.raises(OutputError, match="even"):
            VideoWriter(tmp_path / "a.mp4", width, height)
    with pytest.raises(OutputError, match="metadata"):
        VideoWriter(tmp_path / "a.mp4", 64, 64, metadata={"mood": "blue"})
    speech = read_speech(write_sound(tmp_path / "in.mp4", tone(44100, 1.0), 44100, "aac", "fltp"))
    with pytest.raises(OutputError, match="recording itself"):
        VideoWriter(tmp_path / "in.mp4", 64, 64, speech)
    (tmp_path / "in.mp4").unlink()
    with pytest.raises(AudioError, match="does not exist"):
        VideoWriter(tmp_path / "a.mp4", 64, 64, speech)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(OutputError, match="write-protected"):
        VideoWriter(tmp_path / "old.mp4", 64, 64)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dir.mp4", "file", "old.mp4"]


# --- video in ------------------------------------------------------------------------------------------------------


def test_colours_survive(tmp_path: Path) -> None:
    colours = np.array([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [200, 150, 120]], np.uint8)
    picture = np.repeat(np.repeat(colours[None], 32, 0), 16, 1)
    with VideoWriter(tmp_path / "c.mp4", 96, 32) as writer:
        for _ in range(3):
            writer.write(picture)
    for frame in read_video(tmp_path / "c.mp4"):
        centres = frame[16, 8::16].astype(int)
        assert np.abs(centres - colours).max() <= 6
    with av.open(str(tmp_path / "c.mp4")) as container:
        plane = next(container.decode(video=0)).to_ndarray(format="yuv420p")
    # Luma of pure green by BT.709 in limited range is 16 + 219 x 0.7152 = 173; BT.601 would give 145.
    assert abs(int(plane[16, 24]) - 173) <= 2


@pytest.mark.parametrize(
    ("times_ms", "expected"),
    [
        (range(0, 400, 40), list(range(10))),
        (range(0, 400, 20), list(range(0, 20, 2))),
        (range(5000, 5400, 40), list(range(10))),
        ([0, 40, 80, 330, 360], [0, 1, 2, 2, 2, 2, 3, 3, 3, 4]),
        ([0, 100, 200, 300], [0, 0, 1, 1, 2, 2, 2, 3, 3, 3]),
    ],
)
def test_frames_follow_the_time_stamps(tmp_path: Path, times_ms, expected: list[int]) -> None:
    frames = grey_frames([10 * i + 10 for i in range(len(times_ms))])
    path = write_video(tmp_path / "v.mp4", frames, times_ms)
    shown = [round((int(frame.mean()) - 10) / 10) for frame in read_video(path)]
    assert shown == expected


def test_rate_is_exact_over_a_long_clip(tmp_path: Path) -> None:
    count = 300
    times_ms = [round(i * 1001 / 30) for i in range(count)]
    path = write_video(tmp_path / "v.mp4", grey_frames([i % 2 * 200 for i in range(count)]), times_ms)
    shown = [frame.mean() > 100 for frame in read_video(path)]
    assert len(shown) == pytest.approx(count * 1.001 / 30 * 25, abs=1)
    nearest = [min(range(count), key=lambda k: abs(times_ms[k] - 40 * i)) % 2 == 1 for i in range(len(shown))]
    assert np.mean(np.array(shown) == nearest) > 0.99


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), 3), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_turned_video_stands_upright(tmp_path: Path, matrix: tuple[int, int, int, int], turns: int) -> None:
    picture = np.zeros((32, 46, 3), np.uint8)
    picture[:16, :23] = 250
    path = write_video(tmp_path / "v.mp4", [picture] * 4, range(0, 160, 40))
    turn_by_matrix(path, matrix)
    with VideoReader(path) as reader:
        frames = list(reader)
        assert (reader.height, reader.width) == np.rot90(picture, turns).shape[:2]
    for frame in frames:
        assert frame.flags.c_contiguous and frame.dtype == np.uint8
        assert np.abs(frame.astype(int) - np.rot90(picture, turns)).mean() < 8


def test_frames_are_contiguous_own_and_square(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", grey_frames([50, 60], (34, 90)), [0, 120])
    frames = []
    for frame in read_video(path):
        assert frame.flags.c_contiguous and abs(int(frame.mean()) - 50) < 12
        frame[:] = 0
        frames.append(frame)
    assert len(frames) > 2
    wide = write_video(tmp_path / "w.mp4", grey_frames([9] * 3), [0, 40, 80], sample_aspect_ratio=Fraction(2))
    assert next(read_video(wide)).shape == (32, 96, 3)
    assert len(list(read_video(path, max_frames=2))) == 2


def cover_art(folder: Path) -> Path:
    return write_sound(folder / "a.mp3", tone(16000, 1.0), 16000, "libmp3lame", "s16p")


def cut_mp4(folder: Path) -> Path:
    path = write_video(folder / "v.mp4", [noise(32, 48, i) for i in range(9)], range(0, 360, 40))
    path.write_bytes(path.read_bytes()[:2000])
    return path


def garbled_mp4(folder: Path) -> Path:
    path = write_clip(folder / "v.mp4", None, 20)
    data = bytearray(path.read_bytes())
    at = data.index(b"mdat") + 4
    data[at:] = np.random.default_rng(1).integers(0, 256, len(data) - at, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


BAD_VIDEO = {
    "missing": (lambda f: f / "v.mp4", "does not exist"),
    "folder": (lambda f: f, "is a folder"),
    "empty": (empty_file, "0 bytes"),
    "text": (text_file, "no video"),
    "sound only": (cover_art, "no moving picture"),
    "cut": (cut_mp4, "no video"),
    "garbled": (garbled_mp4, "damaged|no frame"),
    "large": (lambda f: write_video(f / "v.mp4", grey_frames([9], (128, 160)), [0]), "160 x 128 px"),
    "long": (lambda f: write_video(f / "v.mp4", grey_frames([9, 9]), [0, 9000]), "longer than 2 s"),
}


@pytest.mark.parametrize("kind", BAD_VIDEO)
def test_bad_video(tmp_path: Path, kind: str) -> None:
    make, message = BAD_VIDEO[kind]
    with (
        pytest.raises(VideoError, match=message) as error,
        VideoReader(make(tmp_path), max_pixels=20000, max_duration_s=2.0) as reader,
    ):
        list(reader)
    one_line(error)
