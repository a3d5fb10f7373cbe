"""Organ painter: the fine stage's painter of mouth and eyes, a small U-Net for each window.

It is told what the decoded frame and the moved portrait show in the window, where the contours are to be, and what the
portrait shows of the organ. The latter also becomes a code of the person, made once a portrait, so that colours and teeth
are the same in every frame. (An addition to the paper; see docs/log.md.)
"""

from __future__ import annotations

from itertools import pairwise

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dawn.config import OrganPainterConfig
from dawn.models.blocks import DownBlock, ResBlock, SameBlock, UpBlock
from dawn.models.lite.detail import ORGANS, Organ, OrganWindows, feather

PATCH_PX = 2
"""Side of the pixels that are one cell of the U-Net."""
CODE_WIDTH = 32


class WindowUNet(nn.Module):
    """Changes a window from what is known of it and a code of the person."""

    def __init__(self, in_channels: int, widths: tuple[int, ...], res_blocks: int) -> None:
        """Build levels of ``widths`` channels, the first at half the window's resolution."""
        super().__init__()
        self.first = SameBlock(PATCH_PX**2 * in_channels, widths[0])
        pairs = list(pairwise(widths))
        self.downs = nn.ModuleList(DownBlock(a, b, pool_first=True) for a, b in pairs)
        self.middle = nn.Sequential(*(ResBlock(widths[-1]) for _ in range(res_blocks)))
        self.ups = nn.ModuleList(UpBlock(b, a) for a, b in reversed(pairs))
        self.joins = nn.ModuleList(SameBlock(2 * a, a) for a, _ in reversed(pairs))
        self.last = nn.Conv2d(widths[0], 3 * PATCH_PX**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Float[Tensor, "B C h w"], code: Float[Tensor, "B N 1 1"]) -> Float[Tensor, "B 3 h w"]:
        """Paint the change of a window."""
        skips = [self.first(F.pixel_unshuffle(x, PATCH_PX))]
        for down in self.downs:
            skips.append(down(skips[-1]))
        h = self.middle(skips.pop() + code)
        for up, join in zip(self.ups, self.joins, strict=True):
            h = join(torch.cat((up(h), skips.pop()), 1))
        return F.pixel_shuffle(self.last(h), PATCH_PX)


class PersonCode(nn.Module):
    """Sums up what the portrait shows of an organ."""

    def __init__(self, in_channels: int, size: int) -> None:
        """Build the encoder of ``in_channels`` to a code of ``size`` numbers."""
        super().__init__()
        self.layers = nn.Sequential(
            SameBlock(4 * in_channels, CODE_WIDTH),
            DownBlock(CODE_WIDTH, 2 * CODE_WIDTH, pool_first=True),
            DownBlock(2 * CODE_WIDTH, 2 * CODE_WIDTH, pool_first=True),
        )
        self.head = nn.Linear(2 * CODE_WIDTH, size)

    def forward(self, seen: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N 1 1"]:
        """Encode the window of the portrait."""
        return self.head(self.layers(F.pixel_unshuffle(seen, 2)).mean((2, 3)))[:, :, None, None]


class OrganPainter(OrganWindows):
    """Repaints mouth and eyes of doubled frames; the left eye is painted as the mirrored right one."""

    def __init__(self, config: OrganPainterConfig, size: int) -> None:
        """Build the painters of pictures of side ``size``."""
        super().__init__(size, config.mouth_window_px, config.eye_window_px)
        # frame, moved and still portrait (9), contours of both, place relative to the organ (2)
        self.mouth = WindowUNet(9 + 2 * 2 + 2, config.mouth_widths, config.res_blocks)
        self.eye = WindowUNet(9 + 2 * 1 + 2, config.eye_widths, config.res_blocks)
        self.mouth_code = PersonCode(3 + 2, config.mouth_widths[-1])
        self.eye_code = PersonCode(3 + 1, config.eye_widths[-1])

    def look(
        self, image: Float[Tensor, "B 3 S S"], landmarks: Float[Tensor, "B 478 _"]
    ) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Cut out what the portrait shows of every organ, then encode each. Done once a portrait."""
        seen = super().look(image, landmarks)
        return (*seen, *(self.encode(organ, part) for organ, part in zip(ORGANS, seen, strict=True)))

    def encode(self, organ: Organ, seen: Float[Tensor, "B C h w"]) -> Float[Tensor, "B N 1 1"]:
        """Make the person's code of what the portrait shows of an organ."""
        seen = seen.flip(-1) if organ.mirrored else seen
        return self.mouth_code(seen) if organ.painter == "mouth" else self.eye_code(seen)

    def forward(
        self,
        frame: Float[Tensor, "B 3 S S"],
        moved: Float[Tensor, "B 3 S S"],
        landmarks: Float[Tensor, "B 478 _"],
        source: tuple[Float[Tensor, "B _ _ _"], ...],
    ) -> Float[Tensor, "B 3 S S"]:
        """Repaint a doubled frame.

        Args:
            frame: As doubled.
            moved: The warped portrait.
            landmarks: Driving landmarks.
            source: What ``look`` returned for the portrait.
        """
        out = frame.permute(0, 2, 3, 1).clone()
        for organ, seen, code in zip(ORGANS, source[: len(ORGANS)], source[len(ORGANS) :], strict=True):
            window = self.place(organ, landmarks)
            here = window.cut(frame)
            places = (self.draw(organ, landmarks, window), self.relative(organ, landmarks, window))
            known = torch.cat((here, window.cut(moved), *places, seen), 1)
            change = self.paint(organ, known, code)
            out[window.cells()] = (here + change * feather(change)).permute(0, 2, 3, 1)
        return out.permute(0, 3, 1, 2)

    def paint(
        self, organ: Organ, known: Float[Tensor, "B C h w"], code: Float[Tensor, "B N 1 1"]
    ) -> Float[Tensor, "B 3 h w"]:
        """Paint the change of a window from all that is known of it."""
        network = self.mouth if organ.painter == "mouth" else self.eye
        return network(known.flip(-1), code).flip(-1) if organ.mirrored else network(known, code)
