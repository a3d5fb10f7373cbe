"""What a clip's record holds, and the pieces around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dawn.checkpoint import load_mean_face
from dawn.face.geometry import remove_pose
from dawn.measures import lips
from dawn.research.evaluation import figures, report, spoken
from dawn.research.evaluation import minute as long
from dawn.research.evaluation.bench import Bench, EvalClip, Shown, scale_frames, track
from dawn.research.evaluation.table import _cell, _number
from dawn.structs import LANDMARK_COUNT, FloatArray, ImageArray, Motion, TrackedFace
from eval_material import FRAMES, BrightnessTracker, clip, random_tools


@pytest.fixture(scope="module")
def tools() -> figures.Tools:
    return random_tools()


def test_true_pose_moves_the_head_as_the_clip_does(tiny_model: Any, tools: figures.Tools) -> None:
    """With nothing drawn: the driving landmarks have the clip's pose, smoothed."""
    subject = clip("c", "a", seed=2)

    class Catching(Bench):
        def show(self, clip: EvalClip, motion: Motion) -> Shown:
            driving = self.engine.landmarks(clip.face, motion, 0, len(motion))
            return Shown(clip.frames, driving.numpy(), np.ones(len(driving), bool))

    bench = Catching("tiny", tiny_model.engine, BrightnessTracker(), [subject], lambda *_: None)  # type: ignore[arg-type]
    shown = bench.show(subject, spoken.move_in_true_pose(tiny_model.engine, subject, seed=0).made)
    made = remove_pose(torch.from_numpy(shown.landmarks), load_mean_face())[1]
    true = remove_pose(torch.from_numpy(subject.landmarks), load_mean_face())[1]
    spread = np.ptp(true[:, 4].numpy())
    assert spread > 0.02 and np.corrcoef(made[:, 4], true[:, 4])[0, 1] > 0.9


def test_real_frames_measured_against_themselves(tools: figures.Tools) -> None:
    subject = clip("c", "a", seed=3)
    again = Shown(subject.frames, subject.landmarks, np.ones(FRAMES, bool))
    truth = figures.Truth(subject, again, float(np.median(lips.lip_distance(subject.landmarks))), tools)
    record = figures.measure_clip(again, truth, figures.PARTS)
    value = {m.name: m.finish(record[m.key]) for m in figures.MEASURES if m.key in record}
    for name in (
        "SSIM",
        "SFace cosine to truth",
        "aperture correlation",
        "aperture amplitude",
        "closure recall",
        "closure precision",
        "sharpness, face",
        "sharpness, mouth box",
        "jitter",
        "flicker",
        "pose speed against real",
    ):
        assert value[name] == pytest.approx(1.0), name
    for name in ("L1", "lag", "landmark error, all", "landmark error, lips"):
        assert value[name] == 0, name
    assert value["SFace Fréchet distance"] == pytest.approx(0, abs=1e-4)
    assert "psnr" not in record, "infinite"


def test_each_figure_sees_its_own_damage(tools: figures.Tools) -> None:
    subject = clip("c", "a", seed=4)
    truth = figures.Truth(subject, Shown(subject.frames, subject.landmarks, np.ones(FRAMES, bool)), 0.05, tools)
    grey = (subject.frames // 2 + 64).astype(np.uint8)
    late = np.roll(subject.landmarks, 2, 0)
    rng = np.random.default_rng(0)
    trembling = (subject.landmarks + rng.normal(0, 0.02, subject.landmarks.shape)).astype(np.float32)

    def value(name: str, frames: ImageArray, landmarks: FloatArray) -> float:
        record = figures.measure_clip(Shown(frames, landmarks, np.ones(FRAMES, bool)), truth, figures.PARTS)
        (measure,) = (m for m in figures.MEASURES if m.name == name)
        return measure.finish(record[measure.key])

    assert value("sharpness, face", grey, subject.landmarks) == pytest.approx(0.25, rel=0.05)
    assert value("flicker", grey, subject.landmarks) == pytest.approx(0.25, rel=0.05)
    assert value("lag", subject.frames, late) == 2 and value("A/V offset", subject.frames, late) == 80
    assert value("jitter", subject.frames, trembling) > 3
    assert 0 < value("landmark error, lips", subject.frames, trembling) < 0.1


def test_widest_mouth_frame() -> None:
    points = np.zeros((5, 478, 3), np.float32)
    points[:, 14, 1] = [0.1, 0.15, 0.4, 0.2, 0.0]
    assert figures.widest_mouth_frame(points) == 2
    points[:, 14, 1] = [0.3, 0.3, 0.4, 0.3, 0.0]
    assert figures.widest_mouth_frame(points) == 4, "closing counts as much as opening"


def test_thresholds_are_the_persons_own() -> None:
    clips = [clip("0", "a", 0), clip("1", "a", 1), clip("2", "b", 2)]
    found = report.closed_thresholds(clips)
    assert found["b"] == lips.closed_threshold([lips.lip_distance(clips[2].landmarks)])
    assert found["a"] == lips.closed_threshold([lips.lip_distance(c.landmarks) for c in clips[:2]])


def test_long_sound_ends_as_it_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(long, "LONG_S", 60)
    monkeypatch.setattr(long, "WINDOW_S", 10)
    sound = np.arange(7 * 16_000, dtype=np.float32)
    minute = long.long_sound(sound)
    assert minute.shape == (60 * 16_000,)
    assert (minute[-160_000:] == minute[:160_000]).all()
    assert (minute[:112_000] == sound).all() and (minute[112_000:113_000] == sound[:1000]).all()


def test_long_comparison() -> None:
    found = long.compare([(2.0, 1.0), (2.0, 2.0), (float("nan"), 1.0)])
    assert found == {"first": 2.0, "last": 1.5, "ratio": 0.75, "interval": [0.5, 1.0]}
    assert long.compare([(2.0, 1.0)]) == {"first": 2.0, "last": 1.0, "ratio": 0.5, "interval": None}
    assert long.compare([(0.0, 1.0), (0.0, 2.0)])["ratio"] is None
    assert set(long.compare([(float("nan"), 1.0)]).values()) == {None}


def test_long_comparison_tells_a_decline_from_chance() -> None:
    """A fifth less in every take is seen through takes that differ by as much; none of it is, where there is none."""
    rng = np.random.default_rng(0)
    first, other = rng.normal(1, 0.2, (2, 60))
    low, high = long.compare(list(zip(first.tolist(), (0.8 * other).tolist(), strict=True)))["interval"]
    assert low < 0.8 < high < 1
    low, high = long.compare(list(zip(first.tolist(), other.tolist(), strict=True)))["interval"]
    assert low < 1 < high


def test_scaled() -> None:
    frames = np.full((2, 40, 40, 3), 7, np.uint8)
    assert scale_frames(frames, 20).shape == (2, 20, 20, 3)
    assert scale_frames(frames, 40) is frames
    assert (scale_frames(frames, 80) == 7).all()


class Blinking:
    """A tracker that sees a face in every second picture."""

    def __init__(self) -> None:
        self.calls = 0

    def detect(self, image: np.ndarray) -> list[TrackedFace]:
        assert image.shape == (256, 256, 3)
        self.calls += 1
        points = np.full((LANDMARK_COUNT, 3), 128.0 + self.calls, np.float32)
        return [] if self.calls % 2 else [TrackedFace(points, np.zeros(52, np.float32))]


def test_lost_faces_repeat_and_are_counted() -> None:
    otherwise = np.full((478, 3), 0.25, np.float32)
    tracked = track(Blinking(), np.zeros((4, 64, 64, 3), np.uint8), otherwise)  # type: ignore[arg-type]
    assert tracked.found.tolist() == [False, True, False, True]
    assert tracked.landmarks[:, 0, 0] == pytest.approx([0.25, 2 / 128, 2 / 128, 4 / 128])


def test_numbers_in_the_table() -> None:
    assert _number(None) == "" and _number(-0.0123) == "-0.0123" and _number(31.4159) == "31.42"
    assert _number(0.5) == "0.500" and _number(2.5e-6) == "2.50e-06" and _number(0.0) == "0.0000"
    assert _cell(None) == "" and _cell({"value": 0.5, "interval": [0.4, 0.7]}) == "0.500 ±0.150"
