"""Measures of picture and identity: exact values where they can be worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dawn.errors import InputError
from dawn.face import mesh as lm
from dawn.measures import identity
from dawn.measures import picture as p
from dawn.models.judges.sface import SFace
from dawn.structs import Box


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def noise(rng: np.random.Generator, frames: int = 2, size: int = 32) -> np.ndarray:
    return rng.random((frames, size, size, 3))


def test_l1_and_psnr_exact() -> None:
    grey = np.full((2, 8, 8, 3), 0.5)
    assert p.l1(grey, grey + 0.1) == pytest.approx(0.1)
    assert p.psnr(grey, grey + 0.1) == pytest.approx(20.0)
    both = grey + np.array([0.1, 0.01]).reshape(2, 1, 1, 1)
    assert p.psnr(grey, both) == pytest.approx(30.0), "mean over frames of 20 and 40 dB"
    assert p.psnr(grey, grey) == np.inf


def test_uint8_and_float_agree(rng: np.random.Generator) -> None:
    a, b = (rng.integers(0, 256, (2, 16, 16, 3), dtype=np.uint8) for _ in range(2))
    for measure in (p.l1, p.psnr, p.ssim, p.detail_ratio):
        assert measure(a, b) == pytest.approx(measure(a / 255.0, b / 255.0))
    assert p.gradient_energy(a) == pytest.approx(p.gradient_energy(a / 255.0))


def test_ssim_of_flat_pictures_is_the_light_term() -> None:
    a, b = np.full((1, 16, 16, 3), 0.2), np.full((1, 16, 16, 3), 0.6)
    assert p.ssim(a, b) == pytest.approx((2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4))


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
    assert p.ssim(a, b) == pytest.approx(expected, rel=1e-9)


def test_ssim_symmetric_and_bounded(rng: np.random.Generator) -> None:
    a, b = noise(rng), noise(rng)
    assert p.ssim(a, b) == pytest.approx(p.ssim(b, a))
    assert p.ssim(a, a) == pytest.approx(1.0)
    assert p.ssim(a, 0.9 * a + 0.1 * b) > p.ssim(a, 0.5 * a + 0.5 * b) > p.ssim(a, 1 - a)


def test_shapes_must_agree(rng: np.random.Generator) -> None:
    a = noise(rng, 3)
    for measure in (p.l1, p.psnr, p.ssim):
        with pytest.raises(InputError):
            measure(a, a[:2])
        with pytest.raises(InputError):
            measure(a, a[:, :, 1:])


def test_boxes() -> None:
    points = np.zeros((478, 3))
    points[list(lm.OUTER_LIPS)] = (0, 1, 0)
    points[61], points[291] = (-0.5, 1, 0), (0.5, 1, 0)
    points[list(lm.RIGHT_EYE)] = (-1, -1, 0)
    points[33] = (-1.4, -1, 0)
    points[list(lm.LEFT_EYE)] = (1, -1, 0)
    points[263] = (1.8, -1, 0)

    def sides(box: Box) -> tuple[float, float, float, float]:
        return box.x0, box.y0, box.x1, box.y1

    assert sides(p.mouth_box(points)) == pytest.approx((-0.75, 0.75, 0.75, 1.25))
    right, left = p.eye_boxes(points)
    assert sides(right) == pytest.approx((-1.5, -1.1, -0.9, -0.9))
    assert sides(left) == pytest.approx((0.8, -1.2, 2.0, -0.8))
    assert sides(p.face_box(points)) == pytest.approx((-1.4, -1, 1.8, 1))


def test_crop_units_become_pixels() -> None:
    assert p.to_pixels(np.array([[-1.0, 0.0], [1.0, 0.5]]), 128) == pytest.approx(np.array([[0, 64], [128, 96]]))


def test_box_psnr_sees_only_the_box() -> None:
    a = np.zeros((2, 20, 20, 3))
    b = a.copy()
    b[:, 5:10, 5:10] = 0.1
    b[:, 15:] = 1.0
    assert p.box_psnr(b, a, [Box(5, 5, 10, 10)] * 2) == pytest.approx(20.0)
    assert p.box_psnr(b, a, [Box(5.3, 5.2, 9.1, 9.9)] * 2) == pytest.approx(20.0)
    assert p.box_psnr(b, a, [Box(-9, -9, 20, 30)] * 2) == pytest.approx(p.psnr(b, a))
    with pytest.raises(InputError):
        p.box_psnr(b, a, [Box(-9, -9, -1, -1)] * 2)
    with pytest.raises(InputError):
        p.box_psnr(b, a, [Box(5, 5, 10, 10)])


def test_gradient_energy() -> None:
    ramp = np.repeat((np.arange(16) * 0.02 + np.arange(16)[:, None] * 0.01)[None, :, :, None], 3, -1)
    assert p.gradient_energy(ramp) == pytest.approx(0.02**2 + 0.01**2)
    assert p.gradient_energy(0.5 * ramp + 0.3) == pytest.approx(0.25 * (0.02**2 + 0.01**2)), "energy: the square"
    both = ramp.copy()
    both[:, :8] = 0
    assert p.gradient_energy(both, [Box(2, 10, 8, 14)]) == pytest.approx(0.02**2 + 0.01**2)
    assert p.gradient_energy(both, [Box(2, 1, 8, 5)]) == 0
    with pytest.raises(InputError):
        p.gradient_energy(both, [Box(20, 20, 30, 30)])


def test_blur_lowers_sharpness(rng: np.random.Generator) -> None:
    a = noise(rng)
    blurred = (a[:, 1:] + a[:, :-1]) / 2
    assert p.gradient_energy(blurred) < 0.8 * p.gradient_energy(a)
    assert p.detail_ratio(blurred, a) < 0.8
    assert p.detail_ratio(a, a) == pytest.approx(1.0)
    assert p.detail_ratio(0.5 * a + 0.3, a) == pytest.approx(0.5)
    with pytest.raises(InputError):
        p.detail_ratio(a, np.full_like(a, 0.5))


class PixelsAsIdentity(SFace):
    """A random network sees all faces as one; coarse pixels tell them apart."""

    def forward(self, faces: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.avg_pool2d(faces - 127.5, 16).flatten(1)


def test_identity_cosine(rng: np.random.Generator) -> None:
    images, points = noise(rng, 3, 48), rng.uniform(-0.5, 0.5, (3, 478, 3))
    features = identity.embed(PixelsAsIdentity(), images, points)
    assert features.shape == (3, 147)
    assert identity.cosine(features, features) == pytest.approx(np.ones(3))
    assert identity.cosine(-2 * features, features) == pytest.approx(-np.ones(3))
    one = identity.cosine(features, features[1:2])
    assert one.shape == (3,) and one[1] == pytest.approx(1.0) and one[0] < 0.99
    with pytest.raises(InputError):
        identity.cosine(features, features[:2])
    with pytest.raises(InputError):
        identity.embed(PixelsAsIdentity(), images, points[:2])


def test_embedding_takes_bytes_and_floats(rng: np.random.Generator) -> None:
    images, points = rng.integers(0, 256, (2, 48, 48, 3), dtype=np.uint8), rng.uniform(-0.5, 0.5, (2, 478, 3))
    floats = identity.embed(PixelsAsIdentity(), images / 255.0, points)
    assert identity.embed(PixelsAsIdentity(), images, points) == pytest.approx(floats, abs=1e-3)


def test_frechet_distance_of_two_gaussians(rng: np.random.Generator) -> None:
    """Independent axes: squared difference of the means plus squared difference of the standard deviations."""
    a = rng.normal(size=(20_000, 4)) * [1, 2, 3, 0.5]
    b = rng.normal(size=(20_000, 4)) * [1, 1, 5, 0.5] + [3, 0, 0, 0]
    expected = 3**2 + (2 - 1) ** 2 + (3 - 5) ** 2
    assert identity.frechet_distance(identity.moment_sums(a, b), 4) == pytest.approx(expected, rel=0.05)
    turn, _ = np.linalg.qr(rng.normal(size=(4, 4)))
    turned = identity.frechet_distance(identity.moment_sums(a @ turn, b @ turn), 4)
    assert turned == pytest.approx(identity.frechet_distance(identity.moment_sums(a, b), 4), rel=1e-6)


def test_frechet_distance_pools_clips(rng: np.random.Generator) -> None:
    a, b = rng.normal(size=(60, 3)), rng.normal(size=(60, 3)) + 1
    whole = identity.frechet_distance(identity.moment_sums(a, b), 3)
    parts = identity.moment_sums(a[:20], b[:20]) + identity.moment_sums(a[20:], b[20:])
    assert identity.frechet_distance(parts, 3) == pytest.approx(whole)
    assert identity.frechet_distance(identity.moment_sums(a, a), 3) == pytest.approx(0, abs=1e-9)
    assert np.isnan(identity.frechet_distance(identity.moment_sums(a[:1], b[:1]), 3))
