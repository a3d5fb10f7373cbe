"""Monochrome portraits keep their tone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dawn.rendering.tone import apply_tone, fit_tone

RNG = np.random.default_rng(0)
GREY = RNG.integers(0, 256, (40, 40, 1)).repeat(3, 2).astype(np.uint8)
SEPIA = np.clip(GREY * [1.0, 0.85, 0.6] + [12, 6, 0] + RNG.normal(0, 0.8, GREY.shape), 0, 255).astype(np.uint8)


@pytest.mark.parametrize("crop", [GREY, SEPIA, np.full_like(GREY, 90), np.zeros_like(GREY)])
def test_monochrome_pictures_have_a_tone(crop: np.ndarray) -> None:
    tone = fit_tone(crop)
    assert tone is not None
    frames = torch.from_numpy(crop).permute(2, 0, 1)[None].float() / 255
    assert (apply_tone(frames, tone) - frames).abs().max() < 0.03, "their own pixels stay"


def test_colour_that_was_painted_goes() -> None:
    tone = fit_tone(GREY)
    made = apply_tone(torch.rand(2, 3, 8, 8), tone)
    assert (made - made.mean(1, keepdim=True)).abs().max() < 1e-3
    frames = torch.rand(1, 3, 4, 4)
    luma = 0.299 * frames[:, 0] + 0.587 * frames[:, 1] + 0.114 * frames[:, 2]
    assert torch.allclose(apply_tone(frames, tone)[:, 0], luma, atol=1e-3)


def test_colours_stay() -> None:
    crop = RNG.integers(0, 256, (40, 40, 3)).astype(np.uint8)
    frames = torch.rand(1, 3, 4, 4)
    assert fit_tone(crop) is None and apply_tone(frames, None) is frames
    faint = GREY.copy()
    faint[:10, :10, 0] = np.clip(faint[:10, :10, 0].astype(int) + 60, 0, 255)
    assert fit_tone(faint) is None, "a small coloured part is enough"
