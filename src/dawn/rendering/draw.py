"""From motion to pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from dawn.structs import Face


def picture(face: Face, device: torch.device) -> Tensor:
    """The portrait's crop as (1, 3, R, R) in [0, 1], channels last in memory."""
    image = torch.from_numpy(face.crop.copy()).to(device).permute(2, 0, 1)[None].float() / 255
    return image.contiguous(memory_format=torch.channels_last)


DECODE_BATCH = 8
"""Frames decoded together: enough to fill two cores, few enough to stay in their cache."""
