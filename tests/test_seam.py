"""Measures of a seam, on pictures whose seam is known."""

from __future__ import annotations

import numpy as np
import pytest

import seam
from dawn.errors import InputError

INSIDE = np.zeros((20, 30), bool)
INSIDE[5:15, 8:22] = True
EDGE_PAIRS = 2 * (10 + 14)


def photograph(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(40, 200, (20, 30, 3)).astype(np.uint8)


def pasted(image: np.ndarray, levels: int) -> np.ndarray:
    """The same picture, brighter inside."""
    return image + (INSIDE * levels).astype(np.uint8)[..., None]


def test_the_photograph_has_no_seam() -> None:
    image = photograph()
    frames = np.stack([image] * 3)
    assert seam.steps_across(frames, INSIDE).shape == (3, EDGE_PAIRS)
    assert (seam.gradient_ratio(frames, image, INSIDE) == 1).all()
    assert not seam.gradient_jump(frames, image, INSIDE).any()
    assert seam.jump_flicker(frames, image, INSIDE) == 0 == seam.ring_flicker(frames, INSIDE).max()


def test_a_step_is_counted_in_steps_of_the_photograph() -> None:
    image = photograph()
    own = np.abs(seam.steps_across(image[None], INSIDE)).mean()
    jump = seam.gradient_jump(np.stack([pasted(image, k) for k in (0, 10, 40)]), image, INSIDE)
    np.testing.assert_allclose(jump, np.array([0, 10, 40]) / 255 / own, atol=1e-12)


def test_steps_point_outwards_on_every_side() -> None:
    flat = np.full((20, 30, 3), 100, np.uint8)
    np.testing.assert_allclose(seam.steps_across(pasted(flat, 51)[None], INSIDE), 0.2)


def test_ratio_sees_edges_and_blur() -> None:
    image = photograph()
    grey = np.where(INSIDE[..., None], 120, image).astype(np.uint8)
    grey[4:16, 7:23] = 120
    sharp = np.where(INSIDE[..., None], 255, image).astype(np.uint8)
    low, high = seam.gradient_ratio(np.stack((grey, sharp)), image, INSIDE)
    assert low < 0.1 and high > 1.5


def test_flat_photograph_divides_by_one_grey_level() -> None:
    flat = np.full((20, 30, 3), 100, np.uint8)
    np.testing.assert_allclose(seam.gradient_jump(pasted(flat, 3)[None], flat, INSIDE), 3)
    np.testing.assert_allclose(seam.gradient_ratio(np.stack((flat, pasted(flat, 3))), flat, INSIDE), (1, 3))


def test_over_time() -> None:
    image = photograph()
    frames = np.stack([pasted(image, k) for k in (0, 10, 0, 20)])
    own = np.abs(seam.steps_across(image[None], INSIDE)).mean()
    assert seam.jump_flicker(frames, image, INSIDE) == pytest.approx(40 / 3 / 255 / own)
    np.testing.assert_allclose(seam.ring_flicker(frames, INSIDE), (10, 10, 20))
    np.testing.assert_allclose(seam.ring_flicker(frames, ~INSIDE), 0, atol=1e-12)


def test_refusals() -> None:
    image = photograph()
    with pytest.raises(InputError, match="edge is empty"):
        seam.gradient_jump(image[None], image, np.ones((20, 30), bool))
    with pytest.raises(InputError, match="one size"):
        seam.gradient_ratio(image[None], image, INSIDE[1:])
    with pytest.raises(InputError, match=r"2 frames, got 1"):
        seam.jump_flicker(image[None], image, INSIDE)
    with pytest.raises(InputError, match="one size"):
        seam.ring_flicker(np.stack((image, image)), np.zeros((20, 30), bool))
