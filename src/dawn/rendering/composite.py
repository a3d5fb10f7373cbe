"""Back into the photograph: the generated square → a whole picture.

The generator's motion is used, not only its pixels. Its flow moves the photograph itself, at the photograph's resolution,
and fades to nothing before the crop's border: skin, hair and cloth bend into what stays instead of being cross-faded with it,
so that there is no edge to see and no still copy under a moving one. Only where the generated picture is not the moved
portrait (mouth, lids, what a turn uncovers) is it shown instead, with the local difference in colour taken out.

    photograph ── moved by the faded flow ──────────────┐
    crop ── moved by the flow ─┐                        ├─ where they differ: frame, else photograph ─▶ picture
    generated frame ───────────┴─ difference, colour ───┘

(An addition to the paper, whose pictures are the crop.)
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from dawn.errors import ImageError
from dawn.face import mesh as lm
from dawn.face.geometry import smoothstep
from dawn.models.blocks import identity_grid, image_tensor, resize, warp
from dawn.models.lite.regions import fill_polygon
from dawn.options import FULL_SIZE_PX
from dawn.rules_config import CompositeRules
from dawn.structs import Box, Face, FloatArray, ImageArray

MIN_SIDE_PX = 16
"""H.264's least."""
FACE_SIDES = (234, 454)
"""Landmarks in front of the ears."""
REFERENCE_SIZE_PX = 128
"""Side at which frame and crop are compared."""


def fit_photograph(image: ImageArray, box: Box, limit_px: int) -> tuple[ImageArray, Box]:
    """A photograph (H, W, 3) and a square in it → both so small that no side is over ``limit_px``, sides even (for H.264).

    A photograph that is small enough keeps its pixels; an odd last row or column is left out. Raises ImageError if the
    shorter side would be under 16 px.
    """
    height, width = image.shape[:2]
    scale = min(1.0, limit_px / max(height, width))
    rows, columns = (int(round(side * scale, 6)) // 2 * 2 for side in (height, width))
    if min(rows, columns) < MIN_SIDE_PX:
        raise ImageError(
            f"the photograph, {width} x {height} px, would be shown at {columns} x {rows} px: cut it nearer to the face"
        )
    if scale == 1.0:
        return image[:rows, :columns].copy(), box
    area = (0, 0, columns / scale, rows / scale)
    small = Image.fromarray(image).resize((columns, rows), Image.Resampling.LANCZOS, box=area)
    return np.asarray(small, dtype=np.uint8), Box(box.x0 * scale, box.y0 * scale, box.x1 * scale, box.y1 * scale)


def resample_weights(positions: Tensor, count: int, scale: float) -> Tensor:
    """Weights (len(positions), count) that read a row of ``count`` pixels at given positions (pixel i lies at i).

    scale: pixels of the row per pixel that is made; the cubic (Catmull-Rom) is widened where it reduces. Borders repeat.
    """
    support = max(1.0, scale)
    reach = int(np.ceil(2 * support))
    near = positions.floor().long()[:, None] + torch.arange(1 - reach, reach + 1, device=positions.device)
    d = ((positions[:, None] - near) / support).abs()
    inner = (1.5 * d - 2.5) * d * d + 1
    outer = ((-0.5 * d + 2.5) * d - 4) * d + 2
    weight = torch.where(d < 1, inner, torch.where(d < 2, outer, torch.zeros_like(d)))
    weight = weight / weight.sum(1, keepdim=True)
    out = weight.new_zeros(len(positions), count)
    return out.scatter_add_(1, near.clamp(0, count - 1), weight)


def blur_weights(count: int, sigma: float, device: torch.device) -> Tensor:
    """Gaussian weights (count, count) along a row; what lies outside is left out."""
    place = torch.arange(count, device=device)
    weight = torch.exp(-0.5 * ((place[:, None] - place) / sigma).square())
    return weight / weight.sum(1, keepdim=True)


def map_strictness(landmarks: Tensor, size: int, rules: CompositeRules) -> Tensor:
    """Map how strictly frames are judged, (1, 1, size, size): more on mouth and eyes of landmarks (478, 2 or 3)."""
    cell = size / REFERENCE_SIZE_PX * rules.organ_softness_px
    place = (torch.arange(size, device=landmarks.device) + 0.5)[None] / cell
    out = torch.ones(1, 1, size, size, device=landmarks.device)
    organs = (
        (lm.OUTER_LIPS, rules.stricter_lips),
        (lm.RIGHT_EYE, rules.stricter_eyes),
        (lm.LEFT_EYE, rules.stricter_eyes),
    )
    for contour, factor in organs:
        polygon = (landmarks[None, list(contour), :2] + 1) * (size / 2 / cell)
        out += (factor - 1) * (2 * fill_polygon(place, place, polygon, 1.0)).clamp_max(1)
    return out


def draw_head_mask(landmarks: Tensor, x: Tensor, y: Tensor, rules: CompositeRules) -> Tensor:
    """1 on face, hair and, below, neck, falling to 0 around them: (len(y), len(x)).

    landmarks (478, 2 or 3) and places x, y in crop units.
    """
    top, chin, right, left = (landmarks[index, :2] for index in (lm.FACE_OVAL[0], lm.CHIN[0], *FACE_SIDES))
    height = (top - chin).norm()
    up = (top - chin) / height
    across = torch.stack((-up[1], up[0]))
    width = ((left - right) @ across).abs() / 2
    middle = (top + chin) / 2 + rules.head_rise * height * up
    px, py = x[None] - middle[0], y[:, None] - middle[1]
    along, aside = px * up[0] + py * up[1], px * across[0] + py * across[1]
    aside = aside / (rules.head_width * width)
    # Below its middle the ellipse goes on as a column.
    along = along.clamp_min(0) / (rules.head_height * height)
    return smoothstep(1 - ((along.square() + aside.square()).sqrt() - 1) / rules.head_fade)


def fade_border(place: Tensor, start: float, side: float, limit: int, rules: CompositeRules) -> Tensor:
    """0 at both ends of the crop, 1 in between, for places along it in crop units.

    An end on the photograph's own edge, or outside, has nothing beyond to be joined to, and a head that is cut off there must
    not be held fast: no fade. The crop begins at ``start`` and is ``side`` long, the photograph ``limit``, all pixels.
    """
    fade = torch.ones_like(place)
    if start > rules.edge_px:
        fade = fade * smoothstep((1 + place) / rules.border)
    if start + side < limit - rules.edge_px:
        fade = fade * smoothstep((1 - place) / rules.border)
    return fade


class FullFrame:
    """Generated squares of one portrait → pictures of the size of its photograph. Pixels outside the crop are its own."""

    def __init__(
        self,
        photograph: ImageArray,
        face: Face,
        limit_px: int = FULL_SIZE_PX,
        device: torch.device | None = None,
        rules: CompositeRules | None = None,
    ) -> None:
        """Take the photograph (H, W, 3) uint8 from which ``face`` was made. It is reduced to ``limit_px``, never enlarged.

        Raises ImageError as ``fit_photograph``.
        """
        device, self._rules = device or torch.device("cpu"), rules or CompositeRules()
        rules = self._rules
        self.photograph, self.box = fit_photograph(photograph, face.box, limit_px)
        self.original, self.reduced = f"{photograph.shape[1]} x {photograph.shape[0]} px", self.box != face.box
        self.height: int = self.photograph.shape[0]
        self.width: int = self.photograph.shape[1]
        size = face.crop.shape[0]
        landmarks = torch.from_numpy(face.landmarks).to(device)
        self._crop = torch.cat((image_tensor(face.crop, device), map_strictness(landmarks, size, rules)), 1)
        rows, columns = self._span(self.box.y0, self.height), self._span(self.box.x0, self.width)
        self.region = (slice(*rows), slice(*columns))
        y, x = (self._crop_units(span, start, device) for span, start in ((rows, self.box.y0), (columns, self.box.x0)))
        mask = draw_head_mask(landmarks, x, y, rules) * fade_border(x, self.box.x0, self.box.width, self.width, rules)
        mask = mask * fade_border(y, self.box.y0, self.box.height, self.height, rules)[:, None]
        self._mask = smoothstep(mask / rules.whole)
        self._touched = (mask > 0)[..., None].cpu().numpy()
        scale = size / self.box.width
        self._rows, self._columns = (resample_weights((c + 1) * (size / 2) - 0.5, size, scale) for c in (y, x))
        self._near = blur_weights(REFERENCE_SIZE_PX, rules.near_px, device)
        self._colour = blur_weights(rules.colour_cells, rules.colour_reach_cells, device)
        self._take_surroundings(device)

    @property
    def mask(self) -> FloatArray:
        """(height, width): 0 where the photograph's own pixels stand, 1 where the motion is whole."""
        out = np.zeros((self.height, self.width), np.float32)
        out[self.region] = self._mask.cpu().numpy()
        return out

    @torch.inference_mode()
    def __call__(self, frame: Tensor, grid: Tensor) -> ImageArray:
        """Put a frame into the photograph: picture (height, width, 3) uint8.

        frame: (3, S, S) in [0, 1]. grid: the flow (h, w, 2) that made it from the crop.
        """
        size = self._crop.shape[-1]
        grid = resize(grid[None].permute(0, 3, 1, 2), size, size)
        still = identity_grid(size, size, grid).permute(2, 0, 1)
        made = self._matched(frame, warp(self._crop, grid.permute(0, 2, 3, 1))[0])
        picture = self._moved(self._rows @ (grid[0] - still) @ self._columns.T * self._mask)
        self._paint(picture, made)
        pixels = picture.clamp_(0, 1).mul_(255).round_().byte().permute(1, 2, 0).cpu().numpy()
        out = self.photograph.copy()
        np.copyto(out[self.region], pixels, where=self._touched)
        return out

    def _matched(self, frame: Tensor, moved: Tensor) -> Tensor:
        """The frame in the moved crop's colours, and where it is another picture all the same: (4, S, S).

        moved: (4, S, S), with the strictness. Colour is what the two differ by, on average over the surroundings
        where they agree.
        """
        sides = (REFERENCE_SIZE_PX, REFERENCE_SIZE_PX)
        both = resize(torch.cat((frame - moved[:3], moved[3:]))[None], *sides)
        difference, stricter = both[:, :3], both[0, 3]
        same = torch.exp(-(self._judge(difference) / self._rules.differ).square())
        cells = resize(
            torch.cat((difference * same, same[None, None]), 1), self._rules.colour_cells, self._rules.colour_cells
        )
        sums = self._colour @ cells @ self._colour.T
        colour = sums[:, :3] / sums[:, 3:].clamp_min(1e-3)
        unlike = self._judge(difference - resize(colour, *sides)) * stricter
        share = smoothstep((unlike - self._rules.agree) / (self._rules.differ - self._rules.agree))[None, None]
        return torch.cat((frame - resize(colour, *frame.shape[1:])[0], resize(share, *frame.shape[1:])[0]))

    def _judge(self, difference: Tensor) -> Tensor:
        """Size (n, n) of a difference (1, 3, n, n), each pixel with its neighbours."""
        size = (self._near @ difference[0] @ self._near.T).abs().mean(0)
        return self._near @ size @ self._near.T

    def _paint(self, picture: Tensor, made: Tensor) -> None:
        """Put the frame over the moved photograph (3, h, w), in place, where made (4, S, S) says that it differs."""
        rows, columns = (
            _reached(made[3].any(side), weights) for side, weights in ((1, self._rows), (0, self._columns))
        )
        over = self._rows[rows] @ made @ self._columns[columns].T
        share = over[3].clamp(0, 1) * self._mask[rows, columns]
        picture[:, rows, columns] += share * (over[:3] - picture[:, rows, columns])

    def _moved(self, shift: Tensor) -> Tensor:
        """The photograph's region (3, h, w), every pixel taken from a place that lies ``shift`` (2, h, w) crop units away."""
        grid = torch.addcmul(self._places, shift.permute(1, 2, 0), self._reach)
        return F.grid_sample(
            self._surroundings, grid[None], mode="bicubic", padding_mode="reflection", align_corners=False
        )[0]

    def _take_surroundings(self, device: torch.device) -> None:
        """Region and margin of the photograph as floats, and the sampling grid that reads the region from it."""
        side, margin = self.box.width, self.box.width * self._rules.margin
        (y0, y1), (x0, x1) = (
            (max(0, int(start - margin)), min(limit, int(np.ceil(start + side + margin))))
            for start, limit in ((self.box.y0, self.height), (self.box.x0, self.width))
        )
        self._surroundings = image_tensor(self.photograph[y0:y1, x0:x1], device)
        size = torch.tensor([x1 - x0, y1 - y0], device=device)
        rows, columns = self.region
        y = (torch.arange(rows.start, rows.stop, device=device) + 0.5 - y0) * 2 / size[1] - 1
        x = (torch.arange(columns.start, columns.stop, device=device) + 0.5 - x0) * 2 / size[0] - 1
        self._places = torch.stack((x.expand(len(y), -1), y[:, None].expand(-1, len(x))), -1)
        self._reach = side / size

    def _span(self, start: float, limit: int) -> tuple[int, int]:
        """First and last pixel (exclusive) of the crop along one side, inside the photograph."""
        low = min(max(0, int(np.floor(start))), limit)
        return low, min(limit, max(low, int(np.ceil(start + self.box.width))))

    def _crop_units(self, span: tuple[int, int], start: float, device: torch.device) -> Tensor:
        """Centres of the pixels of a span, in crop units."""
        return (torch.arange(*span, device=device) + 0.5 - start) * (2 / self.box.width) - 1


def _reached(used: Tensor, weights: Tensor) -> slice:
    """Rows of weights (n, S) from the first to the last one that reads any of the used pixels (S,) bool."""
    reads = (weights[:, used] != 0).any(1).nonzero()
    return slice(int(reads[0]), int(reads[-1]) + 1) if len(reads) else slice(0, 0)
