"""Portraits without colours of their own (grey, sepia, tinted prints) stay so: what is painted takes their tone."""

from __future__ import annotations

import torch
from torch import Tensor

from dawn.rules_config import ToneRules
from dawn.structs import LUMA, ImageArray

DEFAULTS = ToneRules()


def fit_tone(crop: ImageArray, rules: ToneRules = DEFAULTS) -> Tensor | None:
    """Fit each channel of a monochrome picture (H, W, 3) uint8 as a quadratic of its luma.

    Returns (3 powers, 3 channels), or None for a picture with colours.
    """
    if not rules.keep:
        return None
    pixels = torch.from_numpy(crop.copy()).reshape(-1, 3).double() / 255
    powers = _powers(pixels @ pixels.new_tensor(LUMA))
    curve = torch.linalg.lstsq(powers, pixels, driver="gelsd").solution
    residual = (powers @ curve - pixels).square().mean().sqrt()
    return curve.float() if float(residual) < rules.residual else None


def apply_tone(frames: Tensor, tone: Tensor | None) -> Tensor:
    """Frames (N, 3, H, W) in the colours of a tone; None leaves them as they are."""
    if tone is None:
        return frames
    luma = torch.einsum("nchw,c->nhw", frames, frames.new_tensor(LUMA))
    return (_powers(luma) @ tone.to(frames)).permute(0, 3, 1, 2)


def _powers(luma: Tensor) -> Tensor:
    return torch.stack((torch.ones_like(luma), luma, luma.square()), -1)
