"""Fine stage: a decoded frame at twice the size.

The generator works at 128 pixels. What a portrait shows at 256 only has to be moved. So the fine stage warps the full-size
portrait with the generator's flow. Where the doubled frame agrees with it, the frame gets the portrait's fine detail. Mouth
and eyes, where they disagree, are painted once more at the full size (``lite.detail``). (An addition to the paper, whose
256-pixel model is a generator four times as large; see docs/log.md.)

Shapes: B batch, S side of the decoded frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dawn.config import DetailConfig, FineConfig, OrganPainterConfig
from dawn.models.blocks import resize
from dawn.models.lite.detail import DetailPainter
from dawn.models.lite.organs import OrganPainter

SCALE = 2


class FineStage(nn.Module):
    """Doubles decoded frames with the help of the full-size portrait."""

    def __init__(self, config: FineConfig, size: int) -> None:
        """Build the stage for results of side ``size`` (2S)."""
        super().__init__()
        self.config = config
        self.painter = _build_painter(config.painter, size)

    def look(
        self, image: Float[Tensor, "B 3 R R"], landmarks: Float[Tensor, "B 478 _"]
    ) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Cut out what the painter needs of the full-size portrait (R = 2S). Done once a portrait."""
        return self.painter.look(image, landmarks) if self.painter else ()

    def forward(
        self,
        frame: Float[Tensor, "B 3 S S"],
        moved: Float[Tensor, "B 3 2*S 2*S"],
        landmarks: Float[Tensor, "B 478 _"],
        details: tuple[Float[Tensor, "B _ _ _"], ...],
    ) -> Float[Tensor, "B 3 2*S 2*S"]:
        """Double a frame; the result is not clamped.

        Args:
            frame: As decoded.
            moved: The warped portrait.
            landmarks: Driving landmarks.
            details: What ``look`` returned for the portrait.
        """
        out = self.transfer(frame, moved)
        if isinstance(self.painter, OrganPainter):
            return self.painter(out, moved, landmarks, details)
        return self.painter(out, landmarks, details) if self.painter else out

    def transfer(
        self, frame: Float[Tensor, "B 3 S S"], moved: Float[Tensor, "B 3 2*S 2*S"]
    ) -> Float[Tensor, "B 3 2*S 2*S"]:
        """Double the frame and add the moved portrait's fine detail where both show the same."""
        reduced = F.avg_pool2d(moved, SCALE)
        unlike = F.avg_pool2d(F.pad((frame - reduced).abs().mean(1, keepdim=True), (1, 1, 1, 1), "replicate"), 3, 1)
        agreement = torch.exp(-(unlike / self.config.agreement).square())
        doubled = resize(torch.cat((frame, reduced, agreement), 1), *moved.shape[2:])
        return doubled[:, :3] + self.config.gain * doubled[:, 6:] * (moved - doubled[:, 3:6])


def _build_painter(config: DetailConfig | OrganPainterConfig | None, size: int) -> DetailPainter | OrganPainter | None:
    if config is None:
        return None
    return OrganPainter(config, size) if isinstance(config, OrganPainterConfig) else DetailPainter(config, size)
