"""Sound: exact time, every kind of file, every kind of broken file. Pictures and video: ``test_media_*.py``."""

from __future__ import annotations

import math
import os
import tempfile
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dawn.media.writer
from dawn.errors import AudioError
from dawn.media import (
    SoundTrack,
    read_speech,
    speech_from_array,
)
from media_files import (
    decoded,
    empty_file,
    grey_frames,
    one_line,
    text_file,
    tone,
    write_clip,
    write_sound,
    write_video,
)

RATES_HZ = [8000, 11025, 16000, 22050, 44100, 48000, 96000, 192000]


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(RATES_HZ), st.integers(200, 1500), st.sampled_from([1, 2]), st.booleans())
def test_time_is_exact_for_every_rate(rate_hz: int, milliseconds: int, channels: int, from_file: bool) -> None:
    sound = tone(rate_hz, milliseconds / 1000, channels=channels)
    exact = Fraction(len(sound), rate_hz)
    with tempfile.TemporaryDirectory() as folder:
        if from_file:
            speech = read_speech(write_sound(Path(folder) / "in.wav", sound, rate_hz))
        else:
            speech = speech_from_array(sound, rate_hz)
        assert speech.duration_s == float(exact)
        assert len(speech.samples) == round(exact * 16000)
        frames = math.ceil(exact * 25)
        assert speech.frame_count == frames
        result = decoded(write_clip(Path(folder) / "out.mp4", speech))
        assert result["times"] == [Fraction(i, 25) for i in range(frames)]
        assert result["audio_start"] == 0
        # AAC rounds up to its own block, so the sound may only end later, and by less than half a frame.
        assert 0 <= result["audio_end"] - Fraction(frames, 25) < Fraction(1024, 44100)
        assert result["samples"].shape[0] == (channels if from_file else 1)


@pytest.mark.parametrize("rate_hz", [8000, 44100, 48000, 192000])
def test_sound_stays_in_step_to_the_end(tmp_path: Path, rate_hz: int) -> None:
    sound = np.zeros((rate_hz * 6, 2))
    starts_s = (0.5, 3.0, 5.5)
    for start_s in starts_s:
        at = round(start_s * rate_hz)
        sound[at : at + rate_hz // 10] = tone(rate_hz, 0.1, 0.8, 2)
    speech = read_speech(write_sound(tmp_path / "in.wav", sound, rate_hz))
    result = decoded(write_clip(tmp_path / "out.mp4", speech))
    for samples, rate in ((speech.samples, 16000), (result["samples"][0], result["rate_hz"])):
        for start_s in starts_s:
            low = round((start_s - 0.2) * rate)
            onset_s = (low + np.argmax(np.abs(samples[low:]) > 0.4)) / rate
            assert onset_s == pytest.approx(start_s, abs=0.002)
    assert 0 <= result["audio_end"] - 6 < Fraction(1024, 44100)


FORMATS = [
    ("a.wav", "pcm_u8", "u8", 44100, 0.02),
    ("a.wav", "pcm_s24le", "s32", 48000, 0.005),
    ("a.wav", "pcm_f32le", "flt", 96000, 0.005),
    ("a.wav", "pcm_f64le", "dbl", 8000, 0.005),
    ("a.aiff", "pcm_s16be", "s16", 44100, 0.005),
    ("a.flac", "flac", "s16", 44100, 0.005),
    ("a.mp3", "libmp3lame", "s16p", 44100, 0.05),
    ("a.m4a", "aac", "fltp", 44100, 0.05),
    ("a.ogg", "vorbis", "fltp", 44100, 0.1),
    ("a.ogg", "libopus", "s16", 48000, 0.05),
    ("a.opus", "libopus", "s16", 48000, 0.05),
    ("a.mkv", "ac3", "fltp", 48000, 0.05),
]


@pytest.mark.parametrize("channels", [1, 2, 6])
@pytest.mark.parametrize(("name", "codec", "sample_format", "rate_hz", "tolerance"), FORMATS)
def test_every_format(tmp_path, name, codec, sample_format, rate_hz, tolerance, channels) -> None:
    if (channels == 6 and codec in ("libmp3lame", "libopus")) or (channels != 2 and codec == "vorbis"):
        pytest.skip("this encoder does not make it")
    sound = tone(rate_hz, 1.0, channels=channels)
    path = write_sound(tmp_path / name, sound, rate_hz, codec, sample_format, strict="experimental")
    speech = read_speech(path)
    assert speech.samples.dtype == np.float32 and speech.samples.ndim == 1
    assert speech.path == str(path)
    # A lossy coder adds its own padding, at most two of its frames.
    assert speech.duration_s == pytest.approx(1.0, abs=1e-9 if tolerance < 0.03 else 0.06)
    middle = speech.samples[3200:12800].astype(np.float64)
    # The level must survive: FFmpeg's default makes stereo and 5.1 of floats too loud.
    assert np.abs(middle).max() == pytest.approx(0.5, abs=tolerance)
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert np.argmax(spectrum) * 16000 / len(middle) == pytest.approx(440, abs=3)


def test_sound_of_a_video(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", grey_frames([10] * 10), range(0, 400, 40), tone(48000, 1.0))
    speech = read_speech(path)
    assert speech.duration_s == pytest.approx(1.0, abs=0.03)
    assert np.abs(speech.samples[3200:12800]).max() == pytest.approx(0.5, abs=0.05)


def test_array_types_agree() -> None:
    wave = tone(22050, 0.5, channels=2)
    expected = speech_from_array(wave, 22050).samples
    for array in (wave[:, 0], (wave * 32767).astype(np.int16), (wave * 127 + 128).astype(np.uint8)):
        got = speech_from_array(array, 22050)
        assert got.duration_s == 0.5 and got.path is None
        np.testing.assert_allclose(got.samples, expected, atol=0.015)
    assert np.abs(speech_from_array(wave * 3, 22050).samples).max() == 1.0


def playlist(folder: Path) -> Path:
    write_sound(folder / "secret.wav", tone(16000, 1.0), 16000)
    (folder / "list.wav").write_text("ffconcat version 1.0\nfile secret.wav\n")
    return folder / "list.wav"


def cut_m4a(folder: Path) -> Path:
    whole = write_sound(folder / "cut.m4a", tone(44100, 2.0), 44100, "aac", "fltp")
    whole.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    return whole


def garbled_mp3(folder: Path) -> Path:
    path = write_sound(folder / "g.ogg", tone(48000, 2.0), 48000, "libopus", "s16")
    data = bytearray(path.read_bytes())
    data[400:] = np.random.default_rng(0).integers(0, 256, len(data) - 400, dtype=np.uint8).tobytes()
    path.write_bytes(data)
    return path


def bad_floats(value: float):
    def make(folder: Path) -> Path:
        sound = tone(16000, 1.0)
        sound[8000:8004] = value
        return write_sound(folder / "f.wav", sound, 16000, "pcm_f32le", "flt")

    return make


BAD_SOUND = {
    "missing": (lambda f: f / "nowhere.wav", "does not exist"),
    "folder": (lambda f: f, "is a folder"),
    "empty": (empty_file, "0 bytes"),
    "text": (text_file, "no sound file"),
    "playlist": (playlist, "no sound file"),
    "cut": (cut_m4a, "no sound file"),
    "garbled": (garbled_mp3, "damaged|lasts 0"),
    "device": (lambda f: Path("/dev/zero"), "not an ordinary file"),
    "no sound": (lambda f: write_video(f / "v.mp4", grey_frames([9] * 9), range(0, 360, 40)), "has no sound"),
    "short": (lambda f: write_sound(f / "s.wav", tone(16000, 0.05), 16000), r"lasts 0\.05 s"),
    "nan": (bad_floats(np.nan), "not finite"),
    "infinite": (bad_floats(np.inf), "not finite"),
    "unscaled": (bad_floats(20000.0), "far over 1"),
    "silent": (
        lambda f: write_sound(f / "q.wav", tone(16000, 1.0, 0.0), 16000),
        "digital silence.*`allow_silence=True`",
    ),
    "near silent": (lambda f: write_sound(f / "q.flac", tone(16000, 1.0, 5e-4), 16000, "flac"), "-66 dBFS"),
    "long": (lambda f: write_sound(f / "l.wav", tone(8000, 3.0), 8000), "longer than 2 s"),
}


@pytest.mark.parametrize("kind", BAD_SOUND)
def test_bad_sound(tmp_path: Path, kind: str) -> None:
    make, message = BAD_SOUND[kind]
    with pytest.raises(AudioError, match=message) as error:
        read_speech(make(tmp_path), max_duration_s=2.0)
    one_line(error)


def test_long_sound_is_not_decoded_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_sound(tmp_path / "long.wav", tone(8000, 60.0), 8000)
    seen = []
    real = dawn.media.audio.decode
    monkeypatch.setattr(dawn.media.audio, "decode", lambda *a: (seen.append(f.samples) or f for f in real(*a)))
    with pytest.raises(AudioError, match="longer than 2 s"):
        read_speech(path, max_duration_s=2.0)
    assert 2 * 8000 < sum(seen) < 5 * 8000


@pytest.mark.parametrize(
    ("samples", "rate_hz", "message"),
    [
        (np.zeros((2, 16000)), 16000, "shape"),
        (np.zeros((4, 4, 4)), 16000, "shape"),
        (np.zeros(0), 16000, "lasts 0 s"),
        (np.full(16000, np.nan), 16000, "not finite"),
        (np.full(16000, 1e300), 16000, "not finite"),
        (np.zeros(16000), 16000, "silent"),
        (np.ones(16000, bool), 16000, "type"),
        (np.ones(16000), 0, "rate"),
        (np.ones(16000), 2_000_000, "rate"),
        (np.ones(16000 * 2000, np.int8), 16000, "longer than 1800 s"),
    ],
)
def test_bad_arrays(samples: np.ndarray, rate_hz: int, message: str) -> None:
    with pytest.raises(AudioError, match=message) as error:
        speech_from_array(samples, rate_hz)
    one_line(error)


def test_silence_on_request(tmp_path: Path) -> None:
    path = write_sound(tmp_path / "quiet.wav", tone(16000, 1.0, 0.0), 16000)
    assert read_speech(path, allow_silence=True).frame_count == 25
    assert speech_from_array(np.zeros(16000), 16000, allow_silence=True).frame_count == 25


def test_gaps_and_old_tags_do_not_matter(tmp_path: Path) -> None:
    wave = np.full((1, 4800), 0.3, np.float32)
    with av.open(str(tmp_path / "a.mka"), "w", metadata_encoding="latin-1") as container:
        container.metadata["title"] = "Ärger"
        stream = container.add_stream("pcm_f32le", rate=48000, layout="mono")
        for index in range(10):
            frame = av.AudioFrame.from_ndarray(wave, format="flt", layout="mono")
            # Half a second of stamps is missing in the middle, as after a pause in a recorder.
            frame.sample_rate, frame.pts = 48000, index * 4800 + (24000 if index > 4 else 0)
            frame.time_base = Fraction(1, 48000)
            container.mux(stream.encode(frame))
    speech = read_speech(tmp_path / "a.mka")
    assert speech.duration_s == 1.0
    assert np.abs(speech.samples[100:-100] - 0.3).max() < 0.01


def test_odd_names(tmp_path: Path) -> None:
    for name in ("a:b c.wav", "ünï\tcødé %d.wav", "-i.wav", os.fsdecode(b"\xff.wav")):
        made = write_sound(tmp_path / "plain.wav", tone(16000, 0.5), 16000)
        speech = read_speech(made.rename(tmp_path / name))
        assert speech.frame_count == 13
        out = write_clip(tmp_path / f"{name}.mp4", speech)
        assert len(decoded(out)["times"]) == 13


def test_sound_track_reads_as_it_goes(tmp_path: Path) -> None:
    speech = read_speech(write_sound(tmp_path / "a.wav", tone(44100, 6.0, channels=6), 44100))
    track = SoundTrack(speech)
    assert (track.rate_hz, track.layout) == (44100, "stereo")
    for _ in range(150):
        assert track.read(1764).shape == (2, 1764)
        assert track._left.shape[1] < 44100
    assert not track.read(44100).any()
    track.close()
