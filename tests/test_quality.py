"""Measures of picture and motion: exact values where they can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dawn import landmarks as lm
from dawn.errors import InputError
from dawn.evaluation import quality as q
from dawn.models.face_features import SFace
from dawn.structs import Box


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def noise(rng: np.random.Generator, frames: int = 2, size: int = 32) -> np.ndarray:
    return rng.random((frames, size, size, 3))


def face(frames: int = 1) -> np.ndarray:
    """Random points with known eyes and lips: eyes 2 apart, gaps 0.1, 0.2, 0.3, mouth 1 wide."""
    points = np.random.default_rng(1).normal(size=(478, 3))
    points[33], points[263] = (-1, 0, 0), (1, 0, 0)
    points[list(lm.OUTER_LIPS)] = (0, 1, 0)
    points[61], points[291] = (-0.5, 1, 0), (0.5, 1, 0)
    for (upper, lower), gap in zip(lm.INNER_LIP_PAIRS, (0.1, 0.2, 0.3), strict=True):
        points[upper], points[lower] = (0, 1, 0), (0, 1 + gap, 0)
    return np.repeat(points[None], frames, 0)


def rotation(rng: np.random.Generator) -> np.ndarray:
    matrix, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    return matrix


def test_l1_and_psnr_exact() -> None:
    grey = np.full((2, 8, 8, 3), 0.5)
    assert q.l1(grey, grey + 0.1) == pytest.approx(0.1)
    assert q.psnr(grey, grey + 0.1) == pytest.approx(20.0)
    both = grey + np.array([0.1, 0.01]).reshape(2, 1, 1, 1)
    assert q.psnr(grey, both) == pytest.approx(30.0), "mean over frames of 20 and 40 dB"
    assert q.psnr(grey, grey) == np.inf


def test_uint8_and_float_agree(rng: np.random.Generator) -> None:
    a, b = (rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    for measure in (q.l1, q.psnr, q.ssim, q.sharpness_ratio):
        assert measure(a, b) == pytest.approx(measure(a / 255.0, b / 255.0))


def test_ssim_of_flat_pictures_is_the_light_term() -> None:
    a, b = np.full((1, 16, 16, 3), 0.2), np.full((1, 16, 16, 3), 0.6)
    assert q.ssim(a, b) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4))


def test_ssim_one_window_by_definition(rng: np.random.Generator) -> None:
    a, b = noise(rng, 1, 11), noise(rng, 1, 11)
    x, y = (image[0] @ [0.299, 0.587, 0.114] for image in (a, b))
    grid = np.arange(11) - 5
    window = np.exp(-(grid[:, None] ** 2 + grid[None] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    mx, my = (window * x).sum(), (window * y).sum()
    vx, vy = (window * (x - mx) ** 2).sum(), (window * (y - my) ** 2).sum()
    cov = (window * (x - mx) * (y - my)).sum()
    expected = (2 * mx * my + 1e-4) * (2 * cov + 9e-4) / ((mx**2 + my**2 + 1e-4) * (vx + vy + 9e-4))
    assert q.ssim(a, b) == pytest.approx(expected, rel=1e-9)


def test_ssim_symmetric_and_bounded(rng: np.random.Generator) -> None:
    a, b = noise(rng), noise(rng)
    assert q.ssim(a, b) == pytest.approx(q.ssim(b, a))
    assert q.ssim(a, a) == pytest.approx(1.0)
    assert q.ssim(a, 0.9 * a + 0.1 * b) > q.ssim(a, 0.5 * a + 0.5 * b) > q.ssim(a, 1 - a)


def test_shapes_must_agree(rng: np.random.Generator) -> None:
    a = noise(rng, 3)
    for measure in (q.l1, q.psnr, q.ssim):
        with pytest.raises(InputError):
            measure(a, a[:2])
        with pytest.raises(InputError):
            measure(a, a[:, :, 1:])


def test_mouth_box() -> None:
    box = q.mouth_box(face()[0])
    assert (box.x0, box.y0, box.x1, box.y1) == pytest.approx((-0.75, 0.75, 0.75, 1.25))


def test_box_psnr_sees_only_the_box() -> None:
    a = np.zeros((2, 20, 20, 3))
    b = a.copy()
    b[:, 5:10, 5:10] = 0.1
    b[:, 15:] = 1.0
    assert q.box_psnr(b, a, [Box(5, 5, 10, 10)] * 2) == pytest.approx(20.0)
    assert q.box_psnr(b, a, [Box(5.3, 5.2, 9.1, 9.9)] * 2) == pytest.approx(20.0)
    assert q.box_psnr(b, a, [Box(-9, -9, 20, 30)] * 2) == pytest.approx(q.psnr(b, a))
    with pytest.raises(InputError):
        q.box_psnr(b, a, [Box(-9, -9, -1, -1)] * 2)
    with pytest.raises(InputError):
        q.box_psnr(b, a, [Box(5, 5, 10, 10)])


def test_sharpness_ratio(rng: np.random.Generator) -> None:
    a = noise(rng)
    assert q.sharpness_ratio(a, a) == pytest.approx(1.0)
    assert q.sharpness_ratio(0.5 * a + 0.3, a) == pytest.approx(0.5)
    blurred = (a[:, 1:] + a[:, :-1]) / 2
    assert q.sharpness_ratio(blurred, a) < 0.8
    with pytest.raises(InputError):
        q.sharpness_ratio(a, np.full_like(a, 0.5))


class PixelsAsIdentity(SFace):
    """A random network sees all faces as one; coarse pixels tell them apart."""

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(faces - 127.5, 16).flatten(1)


def test_identity_cosine(rng: np.random.Generator) -> None:
    sface = PixelsAsIdentity()
    images, points = noise(rng, 3, 48), rng.uniform(-0.5, 0.5, (3, 478, 3))
    same = q.identity_cosine(sface, images, points, images, points)
    assert same.shape == (3,) and same == pytest.approx(np.ones(3), abs=1e-5)
    one = q.identity_cosine(sface, images, points, images[1:2], points[1:2])
    assert one.shape == (3,) and one[1] == pytest.approx(1.0, abs=1e-5) and one[0] < 0.99
    with pytest.raises(InputError):
        q.identity_cosine(sface, images, points, images[:2], points[:2])


def test_lips_exact_and_unmoved_by_the_head(rng: np.random.Generator) -> None:
    points = face()
    assert q.lip_aperture(points) == pytest.approx(np.array([0.1]))
    assert q.lip_width(points) == pytest.approx(np.array([0.5]))
    moved = 37.0 * points @ rotation(rng) + rng.normal(size=3)
    assert q.lip_aperture(moved) == pytest.approx(np.array([0.1]))
    assert q.lip_width(moved) == pytest.approx(np.array([0.5]))
    with pytest.raises(InputError):
        q.lip_aperture(np.zeros((1, 478, 3)))


def test_pooled_correlation(rng: np.random.Generator) -> None:
    real = [rng.normal(size=n) for n in (30, 50)]
    assert q.pooled_correlation([2 * x + 5 for x in real], real) == pytest.approx(1.0)
    assert q.pooled_correlation([real[0] + 100, real[1] - 7], real) == pytest.approx(1.0), "clip means do not count"
    assert q.pooled_correlation([-x for x in real], real) == pytest.approx(-1.0)
    assert q.pooled_correlation([np.ones(30), np.zeros(50)], real) == 0.0
    one, other = rng.normal(size=40), rng.normal(size=40)
    assert q.pooled_correlation([one], [other]) == pytest.approx(np.corrcoef(one, other)[0, 1])
    with pytest.raises(InputError):
        q.pooled_correlation(real, [np.ones(30), np.ones(50)])
    with pytest.raises(InputError):
        q.pooled_correlation(real, real[::-1])


@pytest.mark.parametrize("lag", [-4, 0, 3])
def test_best_lag(rng: np.random.Generator, lag: int) -> None:
    real = [rng.normal(size=60) for _ in range(2)]
    found = q.best_lag([np.roll(x, lag) for x in real], real, max_lag_frames=5)
    assert found.frames == lag and found.correlation == pytest.approx(1.0)


def test_best_lag_needs_length(rng: np.random.Generator) -> None:
    with pytest.raises(InputError):
        q.best_lag([np.arange(11.0)], [np.arange(11.0)], max_lag_frames=10)


def test_landmark_error() -> None:
    points = face(2)
    shifted = points + np.array([0.3, 0.4, 9.0])
    assert q.landmark_error(shifted, points) == pytest.approx(0.25), "0.5 over eyes 2 apart, z ignored"
    assert q.landmark_error(10 * shifted, 10 * points) == pytest.approx(0.25)
    assert q.landmark_error(points, points) == 0.0


def test_jitter(rng: np.random.Generator) -> None:
    steady = face(200) + np.arange(200).reshape(-1, 1, 1) * np.array([0.1, -0.2, 0.0])
    assert q.jitter(steady) == pytest.approx(0.0, abs=1e-9)
    assert q.jitter(steady + rng.normal(scale=0.02, size=steady.shape)) == pytest.approx(0.01, rel=0.03)
    with pytest.raises(InputError):
        q.jitter(steady[:2])


def test_blink_rate() -> None:
    ear = np.full(250, 0.3)
    assert q.blink_rate(ear, 25) == 0.0
    ear[50:54] = ear[150:153] = 0.1
    assert q.blink_rate(ear, 25) == pytest.approx(12.0), "2 in 10 s"
    assert q.blink_rate(ear * 40, 25) == pytest.approx(12.0)
    ear[200:220] = 0.1
    assert q.blink_rate(ear, 25) == pytest.approx(12.0), "0.8 s is a closed eye, not a blink"
    ear[:3] = ear[-3:] = 0.1
    assert q.blink_rate(ear, 25) == pytest.approx(12.0), "cut off at the ends"


def test_bootstrap_interval(rng: np.random.Generator) -> None:
    values = rng.normal(3.0, 1.0, 400)
    low, high = q.bootstrap_interval(values, np.random.default_rng(5))
    half = 1.96 * values.std() / 20
    assert low == pytest.approx(values.mean() - half, abs=0.02)
    assert high == pytest.approx(values.mean() + half, abs=0.02)
    assert q.bootstrap_interval(values, np.random.default_rng(5)) == (low, high)
    narrow = q.bootstrap_interval(values, np.random.default_rng(5), confidence=0.5)
    assert low < narrow.low < narrow.high < high
    assert q.bootstrap_interval(np.full(5, 2.0), rng) == (2.0, 2.0)
    with pytest.raises(InputError):
        q.bootstrap_interval(np.array([1.0]), rng)
