"""Measures of lips, and intervals: exact values where they can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dawn.errors import InputError
from dawn.face import mesh as lm
from dawn.measures import lips
from dawn.measures.intervals import bootstrap_interval, share


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def face(frames: int = 1) -> np.ndarray:
    """Random points with known eyes and lips: eyes 2 apart, gaps 0.1, 0.2, 0.3, mouth 1 wide."""
    points = np.random.default_rng(1).normal(size=(478, 3))
    points[33], points[263] = (-1, 0, 0), (1, 0, 0)
    points[list(lm.OUTER_LIPS)] = (0, 1, 0)
    points[61], points[291] = (-0.5, 1, 0), (0.5, 1, 0)
    for (upper, lower), gap in zip(lm.INNER_LIP_PAIRS, (0.1, 0.2, 0.3), strict=True):
        points[upper], points[lower] = (0, 1, 0), (0, 1 + gap, 0)
    return np.repeat(points[None], frames, 0)


def test_lips_exact_and_unmoved_by_the_head(rng: np.random.Generator) -> None:
    points = face()
    assert lips.lip_distance(points) == pytest.approx(np.array([0.1]))
    assert lips.lip_width(points) == pytest.approx(np.array([0.5]))
    rotation, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    moved = 37.0 * points @ rotation + rng.normal(size=3)
    assert lips.lip_distance(moved) == pytest.approx(np.array([0.1]))
    assert lips.lip_width(moved) == pytest.approx(np.array([0.5]))
    with pytest.raises(InputError):
        lips.lip_distance(np.zeros((1, 478, 3)))


def test_landmark_error() -> None:
    points = face(2)
    shifted = points + np.array([0.3, 0.4, 9.0])
    assert lips.landmark_error(shifted, points) == pytest.approx(0.25), "0.5 over eyes 2 apart, z ignored"
    assert lips.landmark_error(10 * shifted, 10 * points) == pytest.approx(0.25)
    assert lips.landmark_error(points, points) == 0.0
    moved = points.copy()
    moved[:, list(lm.LIPS), 0] += 0.2
    assert lips.landmark_error(moved, points, lm.LIPS) == pytest.approx(0.1)
    assert lips.landmark_error(moved, points) == pytest.approx(0.1 * len(lm.LIPS) / 478)
    assert lips.landmark_error(moved, points, lm.LEFT_EYE) == 0
    with pytest.raises(InputError):
        lips.landmark_error(points, points[:1])


def total(made: list[np.ndarray], real: list[np.ndarray]) -> np.ndarray:
    return sum(map(lips.correlation_sums, made, real))  # type: ignore[return-value, arg-type]


def test_pooled_correlation(rng: np.random.Generator) -> None:
    real = [rng.normal(size=n) for n in (30, 50)]
    assert lips.correlation(total([2 * x + 5 for x in real], real)) == pytest.approx(1.0)
    assert lips.correlation(total([real[0] + 100, real[1] - 7], real)) == pytest.approx(1.0), "clip means do not count"
    assert lips.correlation(total([-x for x in real], real)) == pytest.approx(-1.0)
    assert lips.correlation(total([np.ones(30), np.zeros(50)], real)) == 0.0
    one, other = rng.normal(size=40), rng.normal(size=40)
    assert lips.correlation(total([one], [other])) == pytest.approx(np.corrcoef(one, other)[0, 1])
    assert np.isnan(lips.correlation(total(real, [np.ones(30), np.ones(50)])))
    with pytest.raises(InputError):
        lips.correlation_sums(real[0], real[1])


def test_amplitude_ratio(rng: np.random.Generator) -> None:
    real = [rng.normal(size=30), rng.normal(size=30)]
    assert lips.amplitude_ratio(total([0.8 * x + i for i, x in enumerate(real)], real)) == pytest.approx(0.8)
    assert lips.amplitude_ratio(total([np.ones(30)] * 2, real)) == 0


@pytest.mark.parametrize("lag", [-4, 0, 3])
def test_best_lag(rng: np.random.Generator, lag: int) -> None:
    real = [rng.normal(size=60) for _ in range(2)]
    found = lips.best_lag(sum(lips.lag_sums(np.roll(x, lag), x) for x in real))  # type: ignore[arg-type]
    assert found.frames == lag and found.correlation == pytest.approx(1.0)


def test_best_lag_prefers_none_and_needs_length() -> None:
    assert lips.best_lag(lips.lag_sums(np.ones(20), np.arange(20.0) % 3)) == (0, 0.0)
    with pytest.raises(InputError):
        lips.lag_sums(np.arange(11.0), np.arange(11.0), max_lag_frames=10)


def test_closed_threshold() -> None:
    """The 5th percentile over all clips of a person, and the margin: one clip alone need not show the shut mouth."""
    assert lips.closed_threshold([np.full(100, 0.01), np.full(900, 0.2)]) == pytest.approx(0.025)
    assert lips.closed_threshold([np.full(900, 0.2)]) == pytest.approx(0.215)


def test_closures_with_a_frame_of_tolerance() -> None:
    real = np.full(20, 0.1)
    real[[4, 5, 12]] = 0.01
    made = np.full(20, 0.1)
    made[6] = 0.0
    recall_part = lips.closure_sums(made, real, 0.02)
    assert recall_part.tolist() == [1, 3, 1, 1], "frame 5 is met by frame 6; 4 and 12 are not"
    assert lips.closure_sums(np.roll(real, 1), real, 0.02).tolist() == [3, 3, 3, 3]
    assert lips.closure_sums(np.roll(real, 2), real, 0.02)[0] == 1
    assert lips.closure_sums(np.full(20, 0.02), real, 0.02).tolist() == [3, 3, 7, 20], "always shut: all met, few right"
    never = lips.closure_sums(np.full(20, 0.1), real, 0.02)
    assert never.tolist() == [0, 3, 0, 0] and share(never[:2]) == 0 and np.isnan(share(never[2:]))
    with pytest.raises(InputError):
        lips.closure_sums(made[1:], real, 0.02)


def test_bootstrap_of_a_mean(rng: np.random.Generator) -> None:
    values = rng.normal(3.0, 1.0, 400)
    sums = np.stack((values, np.ones(400)), 1)
    low, high = bootstrap_interval(sums, share, np.random.default_rng(5))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert bootstrap_interval(sums, share, np.random.default_rng(5)) == (low, high)
    narrow = bootstrap_interval(sums, share, np.random.default_rng(5), confidence=0.5)
    assert low < narrow.low < narrow.high < high
    assert bootstrap_interval(np.tile([2.0, 1.0], (5, 1)), share, rng) == (2.0, 2.0)
    with pytest.raises(InputError):
        bootstrap_interval(np.ones((1, 2)), share, rng)


def test_bootstrap_of_a_correlation(rng: np.random.Generator) -> None:
    """Whole clips are drawn: one clip of another kind widens the interval."""
    real = [rng.normal(size=30) for _ in range(12)]
    made = [x + rng.normal(scale=0.5, size=30) for x in real]
    alike = bootstrap_interval(np.stack(list(map(lips.correlation_sums, made, real))), lips.correlation, rng)
    made[0] = -3 * real[0]
    mixed = bootstrap_interval(np.stack(list(map(lips.correlation_sums, made, real))), lips.correlation, rng)
    assert 0.8 < alike.low < alike.high < 1 and mixed.high - mixed.low > 3 * (alike.high - alike.low)


def test_bootstrap_leaves_out_draws_without_a_figure(rng: np.random.Generator) -> None:
    """Two of three clips have no event to take a share of."""
    interval = bootstrap_interval(np.array([[1.0, 2.0], [0, 0], [0, 0]]), share, rng)
    assert interval == (0.5, 0.5)
    assert np.isnan(bootstrap_interval(np.zeros((3, 2)), share, rng).low)
