"""Detail painter: paint the mouth and the eyes a second time.

Warping cannot show what the source hides, such as teeth behind shut lips or lids over open eyes. And at 128 pixels a mouth
is only twenty pixels wide. So small networks repaint windows around lips and eyes of the decoded frame. They are told where
the contours are to be and what the source shows there. (An addition to the paper, whose generator leaves this to one
decoder; see docs/log.md.)

Shapes: B batch, S side of the frame, h and w of a window, G contours of an organ. Landmarks are in crop units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from dawn.config import DetailConfig
from dawn.face import mesh as lm
from dawn.models.blocks import DownBlock, ResBlock, SameBlock, UpBlock
from dawn.models.lite.regions import fill_polygon, opening_growth

REFERENCE_SIZE_PX = 128
"""The picture size for which the configuration's windows are given."""


class Window(NamedTuple):
    """Pixels of one window in each picture of a batch."""

    columns: Int[Tensor, "B w"]
    rows: Int[Tensor, "B h"]

    def cells(self) -> tuple[Int[Tensor, "B 1 1"], Int[Tensor, "B h 1"], Int[Tensor, "B 1 w"]]:
        """Index the window's pixels in a tensor (B, H, W, C)."""
        batch = torch.arange(len(self.rows), device=self.rows.device)[:, None, None]
        return batch, self.rows[:, :, None], self.columns[:, None, :]

    def cut(self, images: Float[Tensor, "B C H W"]) -> Float[Tensor, "B C h w"]:
        """Cut the window out of pictures."""
        return images.permute(0, 2, 3, 1)[self.cells()].permute(0, 3, 1, 2)


def place_window(points: Float[Tensor, "B V 2"], size: int, width: int, height: int) -> Window:
    """Centre a window of width x height pixels on points, and move it inside a size x size picture."""
    centre = ((points.amin(1) + points.amax(1)) / 2 + 1) * (size / 2)
    extent = centre.new_tensor([width, height])
    start = (centre - extent / 2).round().clamp_min(0)
    start = torch.minimum(start, size - extent).long()
    across, down = (torch.arange(n, device=points.device) for n in (width, height))
    return Window(start[:, :1] + across, start[:, 1:] + down)


class WindowPainter(nn.Module):
    """Paints changes to a window from what is known of it. It works on cells of ``patch`` x ``patch`` pixels."""

    def __init__(self, in_channels: int, width: int, res_blocks: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.first = SameBlock(patch**2 * in_channels, width)
        self.down = DownBlock(width, 2 * width, pool_first=True)
        self.middle = nn.Sequential(*(ResBlock(2 * width) for _ in range(res_blocks)))
        self.up = UpBlock(2 * width, width)
        self.join = SameBlock(2 * width, width)
        self.last = nn.Conv2d(width, 3 * patch**2, 3, padding=1)
        nn.init.zeros_(self.last.weight)
        assert self.last.bias is not None
        nn.init.zeros_(self.last.bias)

    def forward(self, x: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 h w"]:
        """Paint the change of the picture."""
        h = self.first(F.pixel_unshuffle(x, self.patch))
        h = self.join(torch.cat((self.up(self.middle(self.down(h))), h), 1))
        return F.pixel_shuffle(self.last(h), self.patch)


class Organ(NamedTuple):
    """What is painted: its contours (the first is the opening), whether it is mirrored, and the painter's name."""

    name: str
    contours: tuple[tuple[int, ...], ...]
    mirrored: bool
    painter: str


ORGANS = (
    Organ("mouth", (lm.INNER_LIPS, lm.OUTER_LIPS), False, "mouth"),
    Organ("right_eye", (lm.RIGHT_EYE,), False, "eye"),
    Organ("left_eye", (lm.LEFT_EYE,), True, "eye"),
)
SOFTNESS_PX = 0.4
"""Softness of drawn contours."""
FEW_PX = 16.0
"""Openings up to this many pixels (at 128) may be only a softened line."""
PAINTED_FLOOR = 0.1
"""Share of the mouth's painting that is kept when its opening stays as in the source."""


class OrganWindows(nn.Module):
    """Where organs lie in pictures of ``size`` pixels, and how their contours are drawn there."""

    def __init__(self, size: int, mouth_px: tuple[int, int], eye_px: tuple[int, int]) -> None:
        """Size the windows: width and height of ``mouth_px`` and ``eye_px`` hold in a picture of 128 pixels."""
        super().__init__()
        self.size = size
        self.scale = size // REFERENCE_SIZE_PX if size >= REFERENCE_SIZE_PX else 1
        self.windows = {
            name: (min(size, self.scale * width), min(size, self.scale * height))
            for name, (width, height) in (("mouth", mouth_px), ("eye", eye_px))
        }

    def place(self, organ: Organ, landmarks: Float[Tensor, "B 478 _"]) -> Window:
        """Place the organ's window."""
        width, height = self.windows[organ.painter]
        return place_window(landmarks[:, list(organ.contours[-1]), :2], self.size, width, height)

    def draw(self, organ: Organ, landmarks: Float[Tensor, "B 478 _"], window: Window) -> Float[Tensor, "B G h w"]:
        """Draw the organ's contours in its window."""
        cells = (landmarks[..., :2] + 1) * (self.size / 2)
        x, y = window.columns + 0.5, window.rows + 0.5
        return torch.stack([fill_polygon(x, y, cells[:, list(c)], SOFTNESS_PX) for c in organ.contours], 1)

    def look(
        self, image: Float[Tensor, "B 3 S S"], landmarks: Float[Tensor, "B 478 _"]
    ) -> tuple[Float[Tensor, "B _ _ _"], ...]:
        """Cut out what the source shows of every organ: picture and contours (B, 3 + G, h, w). Done once a portrait."""
        seen = []
        for organ in ORGANS:
            window = self.place(organ, landmarks)
            seen.append(torch.cat((window.cut(image), self.draw(organ, landmarks, window)), 1))
        return tuple(seen)

    def relative(self, organ: Organ, landmarks: Float[Tensor, "B 478 _"], window: Window) -> Float[Tensor, "B 2 h w"]:
        """Measure every pixel's place from the organ's middle, in widths of the organ."""
        points = (landmarks[:, list(organ.contours[-1]), :2] + 1) * (self.size / 2)
        low, high = points.amin(1), points.amax(1)
        middle, width = (low + high) / 2, (high - low)[:, :1].clamp_min(1)
        x = (window.columns + 0.5 - middle[:, :1]) / width
        y = (window.rows + 0.5 - middle[:, 1:]) / width
        x = -x if organ.mirrored else x
        shape = (-1, window.rows.shape[1], window.columns.shape[1])
        return torch.stack((x[:, None, :].expand(shape), y[:, :, None].expand(shape)), 1)


class DetailPainter(OrganWindows):
    """Repaints mouth and eyes of decoded frames; the left eye is painted as the mirrored right one."""

    def __init__(self, config: DetailConfig, size: int) -> None:
        """Build the painters of pictures of side ``size``."""
        super().__init__(size, config.mouth_window_px, config.eye_window_px)
        # frame, source, contours of both, place relative to the organ (2)
        self.mouth = WindowPainter(6 + 2 * 2 + 2, config.mouth_width, config.res_blocks, 2 * self.scale)
        self.eye = WindowPainter(6 + 2 * 1 + 2, config.eye_width, config.res_blocks, 2 * self.scale)

    def forward(
        self,
        frame: Float[Tensor, "B 3 S S"],
        landmarks: Float[Tensor, "B 478 _"],
        source: tuple[Float[Tensor, "B _ _ _"], ...],
    ) -> Float[Tensor, "B 3 S S"]:
        """Repaint a decoded frame.

        Args:
            frame: As decoded.
            landmarks: Driving landmarks.
            source: What ``look`` returned for the portrait.
        """
        out = frame.permute(0, 2, 3, 1).clone()
        for organ, seen in zip(ORGANS, source, strict=True):
            window = self.place(organ, landmarks)
            here, wanted = window.cut(frame), self.draw(organ, landmarks, window)
            known = torch.cat((here, wanted, self.relative(organ, landmarks, window), seen), 1)
            change = self._paint(organ, known)
            if organ.painter == "mouth":
                change = change * self.paint_weight(wanted[:, 0], seen[:, 3])
            out[window.cells()] = (here + change * feather(change)).permute(0, 2, 3, 1)
        return out.permute(0, 3, 1, 2)

    def _paint(self, organ: Organ, known: Float[Tensor, "B C h w"]) -> Float[Tensor, "B 3 h w"]:
        painter = self.mouth if organ.painter == "mouth" else self.eye
        return painter(known.flip(-1)).flip(-1) if organ.mirrored else painter(known)

    def paint_weight(self, wanted: Float[Tensor, "B h w"], shown: Float[Tensor, "B h w"]) -> Float[Tensor, "B 1 1 1"]:
        """Weigh the mouth's painting: much if its opening has to grow or to close, little if it stays.

        Where the source shows as much of the mouth as is wanted, its own teeth are better than painted ones.

        Args:
            wanted: The driving opening.
            shown: The source's opening.
        """
        areas = torch.stack((wanted.sum((1, 2)), shown.sum((1, 2))))
        changed = opening_growth(areas.amin(0), areas.amax(0), FEW_PX * (self.size / REFERENCE_SIZE_PX) ** 2)
        return (PAINTED_FLOOR + (1 - PAINTED_FLOOR) * changed)[:, None, None, None]


def feather(like: Float[Tensor, "B C h w"]) -> Float[Tensor, "1 1 h w"]:
    """Make a mask that is 1 inside and falls to 0 over the outer three pixels."""
    height, width = like.shape[2:]

    def ramp(n: int) -> Tensor:
        edge = torch.arange(n, device=like.device, dtype=like.dtype) + 0.5
        return (torch.minimum(edge, n - edge) / 3).clamp(max=1)

    return (ramp(height)[:, None] * ramp(width))[None, None]
