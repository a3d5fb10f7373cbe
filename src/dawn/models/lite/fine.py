"""Fine stage: a decoded frame at twice the size.

The generator reasons and paints at 128 pixels; what a portrait shows at 256 is not lost, it only has to be moved. The fine
stage warps the full-size portrait with the flow that the generator has already chosen and adds what the doubled frame lacks
of it wherever the two agree, so that there the result is the moved portrait itself. Mouth and eyes, where they do not agree,
are painted once more at the full size (``models.detail``). (An addition to the paper, whose 256-pixel model is a generator
four times as large; see docs/log.md.)
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dawn.config import FineConfig
from dawn.models.blocks import resize
from dawn.models.lite.detail import DetailPainter

SCALE = 2


class FineStage(nn.Module):
    """(B, 3, S, S) decoded frames and a full-size portrait, moved → (B, 3, 2S, 2S)."""

    def __init__(self, config: FineConfig, size: int) -> None:
        """size: 2S."""
        super().__init__()
        self.config = config
        self.painter = DetailPainter(config.painter, size) if config.painter else None

    def look(self, image: Tensor, landmarks: Tensor) -> tuple[Tensor, ...]:
        """What the painter needs of the full-size portrait (B, 3, 2S, 2S). Computed once a portrait."""
        return self.painter.look(image, landmarks) if self.painter else ()

    def forward(self, frame: Tensor, moved: Tensor, landmarks: Tensor, details: tuple[Tensor, ...]) -> Tensor:
        """frame (B, 3, S, S); moved (B, 3, 2S, 2S) the portrait, warped; landmarks (B, 478, 2 or 3) driving; details
        from ``look``. Not clamped."""
        out = self.transfer(frame, moved)
        return self.painter(out, landmarks, details) if self.painter else out

    def transfer(self, frame: Tensor, moved: Tensor) -> Tensor:
        """The doubled frame with the moved portrait's fine detail where both show the same."""
        reduced = F.avg_pool2d(moved, SCALE)
        unlike = F.avg_pool2d(F.pad((frame - reduced).abs().mean(1, keepdim=True), (1, 1, 1, 1), "replicate"), 3, 1)
        agreement = torch.exp(-(unlike / self.config.agreement).square())
        doubled = resize(torch.cat((frame, reduced, agreement), 1), *moved.shape[2:])
        return doubled[:, :3] + self.config.gain * doubled[:, 6:] * (moved - doubled[:, 3:6])
