"""The parts of the evaluation that need no trained weights."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from dawn import landmarks as lm
from dawn.checkpoint import load_mean_face
from dawn.evaluation import quality
from dawn.evaluation.driven import _landmarks, widest_mouth_frame
from dawn.evaluation.material import EvalClip, face_of, row, scaled, track
from dawn.evaluation.report import _number, format_report
from dawn.evaluation.spoken import exchanged, pick_portraits, pooled_std
from dawn.structs import TrackedFace


def clip(name: str, person: str, frames: int = 4, seed: int = 0) -> EvalClip:
    rng = np.random.default_rng(seed)
    points = (0.6 * load_mean_face().numpy() + rng.normal(0, 0.005, (frames, 478, 3))).astype(np.float32)
    pictures = rng.integers(0, 255, (frames, 32, 32, 3), dtype=np.uint8)
    face = face_of(pictures[0], points[0], load_mean_face())
    return EvalClip(name, person, pictures, points, np.zeros(10, np.float32), face)


@pytest.mark.parametrize("people", ["aabb", "aaaaab", "abc", "aa", "aaabbbbbbcd"])
def test_exchanged_sound(people: str) -> None:
    other = exchanged(people)
    assert sorted(other) == list(range(len(people)))
    assert all(i != j for i, j in enumerate(other))
    same = sum(people[i] == people[j] for i, j in enumerate(other))
    most = max(Counter(people).values())
    assert same == max(0, 2 * most - len(people)), "no more than must be"


def test_portraits_are_of_many_people() -> None:
    clips = [clip(str(i), person) for i, person in enumerate("aaabbc")]
    assert [c.person for c in pick_portraits(clips, 3)] == ["a", "b", "c"]
    assert [c.name for c in pick_portraits(clips, 5)] == ["0", "3", "5", "1", "4"]


def test_widest_mouth_frame() -> None:
    points = np.zeros((5, 478, 3), np.float32)
    points[:, 14, 1] = [0.1, 0.15, 0.4, 0.2, 0.0]
    assert widest_mouth_frame(points) == 2
    points[:, 14, 1] = [0.3, 0.3, 0.4, 0.3, 0.0]
    assert widest_mouth_frame(points) == 4, "closing counts as much as opening"


def test_lip_error_is_the_mean_over_the_lips() -> None:
    c = clip("c", "a")
    moved = c.landmarks.copy()
    moved[:, list(lm.LIPS), 0] += 0.03
    errors = _landmarks(moved, c)
    expected = (0.03 / quality.face_scale(c.landmarks[1:, :, :2])).mean()
    assert errors["lip error"] == pytest.approx(expected, rel=1e-3)
    assert errors["error"] == pytest.approx(expected * len(lm.LIPS) / 478, rel=1e-3)
    moved = c.landmarks.copy()
    moved[0] += 1
    assert _landmarks(moved, c)["error"] == 0, "the source frame does not count"


def test_pooled_std_ignores_the_clips_means() -> None:
    wave = np.array([1.0, -1.0, 1.0, -1.0])
    assert pooled_std([wave + 5, wave - 3]) == pytest.approx(1)


def test_scaled() -> None:
    frames = np.full((2, 40, 40, 3), 7, np.uint8)
    assert scaled(frames, 20).shape == (2, 20, 20, 3)
    assert scaled(frames, 40) is frames
    assert (scaled(frames, 80) == 7).all()


class Blinking:
    """A tracker that sees a face in every second picture."""

    def __init__(self) -> None:
        self.calls = 0

    def faces(self, image: np.ndarray) -> list[TrackedFace]:
        assert image.shape == (256, 256, 3)
        self.calls += 1
        points = np.full((478, 3), 128.0 + self.calls, np.float32)
        return [] if self.calls % 2 else [TrackedFace(points, np.zeros(52, np.float32))]


def test_lost_faces_repeat_and_are_counted() -> None:
    otherwise = np.full((478, 3), 0.25, np.float32)
    tracked = track(Blinking(), np.zeros((4, 64, 64, 3), np.uint8), otherwise)  # type: ignore[arg-type]
    assert tracked.found.tolist() == [False, True, False, True]
    assert tracked.landmarks[:, 0, 0] == pytest.approx([0.25, 2 / 128, 2 / 128, 4 / 128])


def test_report_shows_every_row() -> None:
    rows = {"alpha": row(0.12345, 0.5, (0.1, 0.2), unit="dB"), "beta": row(31.4159, real=2.0)}
    head = {"preset": "p", "clips": 3, "people": 2, "frames": 90, "seconds": 1.0}
    result = {**head, "driven": rows, "spoken": {"gamma": row(0.01)}}
    text = format_report(result)
    line = next(x for x in text.splitlines() if x.startswith("alpha"))
    assert line.split() == ["alpha", "0.123", "0.100", "..", "0.200", "0.500", "dB"]
    assert "31.42" in text and "gamma" in text and "3 clips" in text
    assert _number(None) == "" and _number(-0.0123) == "-0.0123"
