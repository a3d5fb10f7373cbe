"""Measures of motion: exact values where they can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dawn.errors import InputError
from dawn.measures import motion
from dawn.measures.intervals import share
from dawn.structs import FPS, SPEECH_RATE_HZ


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_jitter(rng: np.random.Generator) -> None:
    steady = rng.normal(size=(1, 478, 3)) + np.arange(200).reshape(-1, 1, 1) * np.array([0.1, -0.2, 0.0])
    assert motion.jitter(steady) == pytest.approx(0.0, abs=1e-9)
    trembling = steady + rng.normal(scale=0.02, size=steady.shape)
    assert motion.jitter(trembling) == pytest.approx(0.02**2, rel=0.05)
    deep = steady + rng.normal(size=steady.shape) * [0, 0, 1]
    assert motion.jitter(deep) == pytest.approx(0.0, abs=1e-9), "depth is only guessed by trackers"
    with pytest.raises(InputError):
        motion.jitter(steady[:2])


def box(x0: float, y0: float, x1: float, y1: float) -> np.ndarray:
    return np.array([[[x0, y0, 0.0], [x1, y1, 0.0]]])


def test_background_is_outside_of_every_face() -> None:
    where = motion.background([box(-0.5, -0.5, 0.0, 0.0), box(0.0, -0.5, 0.5, 0.5)], 40)
    # 10..30 px both ways, a tenth of 20 px wider.
    assert not where[8:32, 8:32].any()
    assert where[:8].all() and where[32:].all() and where[:, :8].all() and where[:, 32:].all()


def test_flicker_counts_only_the_background(rng: np.random.Generator) -> None:
    where = motion.background([box(-0.5, -0.5, 0.5, 0.5)], 40)
    frames = np.full((5, 40, 40, 3), 0.4)
    frames[:, 15:25, 15:25] = rng.random((5, 10, 10, 3))
    assert motion.flicker(frames, where) == 0
    frames[1::2, :5] += 0.1
    share_there = where[:5].sum() / where.sum()
    assert motion.flicker(frames, where) == pytest.approx(0.1**2 * share_there)
    assert np.isnan(motion.flicker(frames, np.zeros((40, 40), bool)))
    with pytest.raises(InputError):
        motion.flicker(frames[:1], where)


def test_blink_count() -> None:
    ear = np.full(250, 0.3)
    assert motion.blink_count(ear) == 0
    ear[50:54] = ear[150:153] = 0.1
    assert motion.blink_count(ear) == 2
    assert motion.blink_count(ear * 40) == 2
    ear[200:220] = 0.1
    assert motion.blink_count(ear) == 2, "0.8 s is a closed eye, not a blink"
    assert motion.blink_count(ear, fps=50) == 3, "0.4 s is"
    ear[:3] = ear[-3:] = 0.1
    assert motion.blink_count(ear) == 2, "cut off at the ends"
    with pytest.raises(InputError):
        motion.blink_count(ear[:0])


def test_pose_speed_and_range() -> None:
    turning = np.arange(100.0)[:, None] * np.array([0.3, 0.4, 0.0])
    speed = motion.angular_speed(turning)
    assert speed.shape == (99,)
    assert speed[10:-10] == pytest.approx(0.5 * FPS), "degrees a second"
    assert motion.pose_range(turning) == pytest.approx((29.7 + 39.6) / 3, rel=0.05)
    assert motion.pose_range(np.full((20, 3), 7.0)) == pytest.approx(0, abs=1e-9)


def test_pose_beats_are_where_the_head_moves_fastest() -> None:
    angles = np.zeros((100, 3))
    angles[:, 0] = 5 / (1 + np.exp(-(np.arange(100) - 30) / 2)) - 4 / (1 + np.exp(-(np.arange(100) - 70) / 2))
    beats = motion.pose_beats(angles)
    assert beats == pytest.approx([30 / FPS, 70 / FPS], abs=1 / FPS)
    assert len(motion.pose_beats(np.zeros((50, 3)))) == 0


def test_audio_onsets() -> None:
    sound = np.zeros(3 * SPEECH_RATE_HZ)
    generator = np.random.default_rng(2)
    starts = (0.5, 1.2, 2.1)
    for start in starts:
        first = int(start * SPEECH_RATE_HZ)
        decay = np.exp(-np.arange(4000) / 1000)
        sound[first : first + 4000] += generator.normal(size=4000) * decay
    onsets = motion.audio_onsets(sound)
    for start in starts:
        assert np.abs(onsets - start).min() < 0.03, (start, onsets)
    assert len(onsets) == 3
    assert motion.audio_onsets(0.01 * sound) == pytest.approx(onsets), "loudness does not count"
    assert len(motion.audio_onsets(np.zeros(16_000))) == 0
    assert len(motion.audio_onsets(np.ones(100))) == 0


def test_beat_alignment() -> None:
    onsets = np.array([1.0, 2.0, 3.0])
    assert share(motion.beat_sums(onsets, onsets)) == pytest.approx(1)
    assert share(motion.beat_sums(np.array([1.1, 2.9]), onsets)) == pytest.approx(np.exp(-0.5)), "one sigma away"
    assert share(motion.beat_sums(np.array([1.5, 2.5]), onsets)) < 1e-5
    assert motion.beat_sums(np.zeros(0), onsets).tolist() == [0, 0]
    assert motion.beat_sums(onsets, np.zeros(0)).tolist() == [0, 0]
