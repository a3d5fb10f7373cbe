"""Face box: a binary mask and the small convolution network that embeds it for the U-Net (paper section 3.3)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dawn.errors import ConfigError


class MaskEncoder(nn.Module):
    """Two stride-2 convolutions. The published weights are random ones that were never trained."""

    def __init__(self, inner: int = 8, out: int = 16) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, inner, 3, stride=2, padding=1)
        self.conv2 = nn.Conv2d(inner, out, 3, stride=2, padding=1)

    def forward(self, mask: Float[Tensor, "B 1 R R"]) -> Float[Tensor, "B C R//4 R//4"]:
        """Embed masks from ``face_mask``."""
        return F.relu(self.conv2(F.relu(self.conv1(mask))))


def face_mask(boxes: Tensor, size_px: int, swapped_sides: bool = False) -> Float[Tensor, "B 1 {size_px} {size_px}"]:
    """Draw ones inside face boxes.

    Corners are rounded outwards as published: down, and down after adding one. The far corner counts as inside. What lies
    outside the picture is cut off.

    Args:
        boxes: (B, 6): x_min, x_max, y_min, y_max in pixels of a picture, and that picture's height and width.
        size_px: Side of the mask.
        swapped_sides: Divide x by the height and y by the width, as the published code does. This shifts the box when the
            picture is not square.

    Raises:
        ConfigError: The boxes have another shape.
    """
    if boxes.ndim != 2 or boxes.shape[1] != 6:
        raise ConfigError(
            f"boxes have shape {tuple(boxes.shape)}: give (B, 6), x_min, x_max, y_min, y_max, height, width"
        )
    x_min, x_max, y_min, y_max, height, width = boxes.double().unbind(1)
    if swapped_sides:
        height, width = width, height
    cells = torch.arange(size_px, device=boxes.device)

    def inside(low: Tensor, high: Tensor, side: Tensor) -> Tensor:
        first, last = torch.trunc(low / side * size_px), torch.trunc(high / side * size_px + 1)
        return (cells >= first[:, None]) & (cells <= last[:, None])

    both = inside(y_min, y_max, height)[:, :, None] & inside(x_min, x_max, width)[:, None, :]
    return both[:, None].float()
