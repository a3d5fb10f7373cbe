"""Zero-lag smoothing of motion over time."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

SHAPE_SMOOTHING_FRAMES = 0.5
"""The tracker's noise in the lips is white; half a frame takes most of it and leaves closures."""
POSE_SMOOTHING_FRAMES = 1.2


def smooth(x: Tensor, width_frames: float) -> Tensor:
    """Gaussian smoothing along the first axis, ends repeated. x: (T, ...) -> the same shape."""
    if width_frames <= 0 or x.shape[0] < 2:
        return x
    reach = max(1, math.ceil(3 * width_frames))
    t = torch.arange(-reach, reach + 1, dtype=x.dtype, device=x.device)
    window = torch.exp(-0.5 * (t / width_frames).square())
    flat = x.flatten(1).T if x.dim() > 1 else x[None]
    padded = F.pad(flat[:, None], (reach, reach), mode="replicate")
    out = F.conv1d(padded, (window / window.sum())[None, None])[:, 0]
    return out.T.reshape(x.shape) if x.dim() > 1 else out[0]
