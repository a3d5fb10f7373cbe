"""What the shipped weights must do: lips follow speech, silence is still, eyes blink, the face stays itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dawn.face.geometry import eye_aspect_ratio, lip_aperture
from dawn.media import read_speech
from dawn.options import GenerateOptions
from dawn.pipeline import Dawn
from dawn.preprocess.tracker import FaceTracker
from dawn.rendering.placement import Placement
from dawn.structs import FPS, SPEECH_RATE_HZ, Face, Speech
from dawn.video import Video

EXAMPLES = Path(__file__).parent.parent / "examples"
PAUSE = slice(round(3.25 * FPS), round(3.5 * FPS))
"""Frames in the middle of the example's silent pause (3.03-3.63 s)."""


@pytest.fixture(scope="module")
def model() -> Dawn:
    return Dawn.from_pretrained("lite-128", device="cpu")


@pytest.fixture(scope="module")
def face(model: Dawn) -> Face:
    return model.prepare(EXAMPLES / "portrait.png")


@pytest.fixture(scope="module")
def spoken(model: Dawn) -> Video:
    return model(EXAMPLES / "portrait.png", EXAMPLES / "speech.wav", seed=1)


def apertures(model: Dawn, video: Video) -> np.ndarray:
    return lip_aperture(model.landmarks(video.face, video.motion, 0, len(video))).numpy()


def test_speech_moves_the_lips_and_a_pause_closes_them(model: Dawn, spoken: Video) -> None:
    opening = apertures(model, spoken)
    assert np.percentile(opening, 95) > 0.06
    assert opening.std() > 0.02
    assert opening[PAUSE].mean() < 0.5 * opening.mean()


def test_speakers_shut_their_lips(model: Dawn, spoken: Video) -> None:
    """But they do not mumble: half of the time or more the lips are apart (the example's long pause is left out)."""
    opening = np.delete(apertures(model, spoken), np.arange(70, 95))
    assert 0.15 < (opening < 0.02).mean() < 0.5
    assert np.percentile(opening, 80) > 0.05


def test_silence_gives_a_closed_still_mouth(model: Dawn, spoken: Video) -> None:
    silence = Speech(np.zeros(4 * SPEECH_RATE_HZ, np.float32), 4.0)
    opening = apertures(model, model(EXAMPLES / "portrait.png", silence, seed=3))
    assert abs(opening.mean()) < 0.015
    assert opening.std() < 0.1 * apertures(model, spoken).std()


def test_other_words_give_other_lips(model: Dawn, spoken: Video, face: Face) -> None:
    """The sound, and not only the seed, decides: backwards it gives different lips."""
    speech = read_speech(EXAMPLES / "speech.wav")
    backwards = Speech(np.ascontiguousarray(speech.samples[::-1]), speech.duration_s)
    other = apertures(model, model(EXAMPLES / "portrait.png", backwards, seed=1))
    again = apertures(model, model(EXAMPLES / "portrait.png", speech, seed=2))
    base = apertures(model, spoken)
    assert np.corrcoef(base, again)[0, 1] > 0.7
    assert np.corrcoef(base, other)[0, 1] < 0.4


def test_heads_sway_and_eyes_blink_at_a_natural_rate(model: Dawn, face: Face) -> None:
    samples = np.resize(read_speech(EXAMPLES / "speech.wav").samples, 120 * SPEECH_RATE_HZ)
    sound = torch.from_numpy(samples)
    features = model.engine.features(sound, 120 * FPS)
    motion = model.engine.generate(features, sound, face, GenerateOptions(seed=5), lambda done: None)
    assert 0.5 < motion.pose[:, :3].std(0).mean() < 5, "degrees"
    assert np.abs(np.diff(motion.pose[:, :3], axis=0)).mean() < 0.5, "degrees a frame"
    shut = motion.blink.mean(1) < -0.4 * float(face.blink.mean())
    rate = np.count_nonzero(shut[1:] & ~shut[:-1]) / 120
    assert 0.1 < rate < 0.8, f"{rate:.2f} blinks a second"


def test_frames_show_the_motion_that_was_asked_for(model: Dawn, spoken: Video) -> None:
    """Lips and eyes that are tracked again on generated frames follow the driving landmarks."""
    frames = range(0, 200, 2)
    wanted = model.landmarks(spoken.face, spoken.motion, 0, 200)[::2]
    with FaceTracker() as tracker:
        found = [
            tracker.detect(np.kron(frame, np.ones((2, 2, 1), np.uint8)))
            for index, frame in zip(range(200), model.render(spoken.face, spoken.motion), strict=False)
            if index in frames
        ]
    assert all(len(faces) == 1 for faces in found)
    seen = torch.from_numpy(np.stack([faces[0].landmarks for faces in found]))
    r = np.corrcoef(lip_aperture(seen), lip_aperture(wanted))[0, 1]
    assert r > 0.7, f"lips follow with r = {r:.2f}"
    eyes = np.corrcoef(eye_aspect_ratio(seen).mean(1), eye_aspect_ratio(wanted).mean(1))[0, 1]
    assert eyes > 0.5, f"eyes follow with r = {eyes:.2f}"


def test_the_larger_preset_is_the_same_face_and_sharper(model: Dawn, spoken: Video) -> None:
    """lite-256 moves as lite-128 does, shows the portrait's own fine detail, and is its picture when reduced."""
    large = Dawn.from_pretrained("lite-256", device="cpu")
    video = large(EXAMPLES / "portrait.png", EXAMPLES / "speech.wav", motion=spoken.motion)
    pick = slice(60, 100, 8)  # from the middle of a word into the pause
    fine = np.stack(list(large.render(video.face, spoken.motion.at(pick)))).astype(float) / 255
    plain = np.stack(list(model.render(spoken.face, spoken.motion.at(pick), 256))).astype(float) / 255
    assert fine.shape == plain.shape == (5, 256, 256, 3)
    assert sharpness(fine) > 1.3 * sharpness(plain)
    reduced = [x.reshape(5, 128, 2, 128, 2, 3).mean((2, 4)) for x in (fine, plain)]
    assert np.abs(reduced[0] - reduced[1]).mean() < 0.02
    small = np.stack(list(large.render(video.face, spoken.motion.at(pick), 128))).astype(float) / 255
    assert small.shape == (5, 128, 128, 3) and np.abs(small - reduced[0]).mean() < 0.02
    assert Placement(video.face, 128).describe(large.engine) == "preset lite-256, 256 px reduced to 128 px"


def test_larger_pictures_have_the_portraits_own_detail(model: Dawn, spoken: Video) -> None:
    """Above the preset's own size the portrait is moved: sharper than enlarged frames, and the same when reduced."""
    pick = spoken.motion.at(slice(60, 100, 8))
    speech = Speech(np.zeros(5 * SPEECH_RATE_HZ // FPS, np.float32), 5 / FPS)
    video = model(EXAMPLES / "portrait.png", speech, motion=pick, size=256, allow_silence=True)
    large = np.stack(list(video)).astype(float) / 255
    plain = np.stack(list(model.render(spoken.face, pick, 256))).astype(float) / 255
    assert large.shape == plain.shape == (5, 256, 256, 3)
    assert sharpness(large) > 1.5 * sharpness(plain)
    reduced = [x.reshape(5, 128, 2, 128, 2, 3).mean((2, 4)) for x in (large, plain)]
    assert np.abs(reduced[0] - reduced[1]).mean() < 0.02


def sharpness(frames: np.ndarray) -> float:
    return float(sum(np.square(np.diff(frames, axis=axis)).mean() for axis in (1, 2)))
