"""Regions drive the flow. In ``lite`` they are affine fits to groups of face-mesh landmarks; nothing is learned.

A provider gives each region an affine map and a heat map. The affine map says where an output cell would come from if it
moved with that region. The heat map says how near a cell is to the region.

Shapes: B batch, K regions, N movers (background and regions), h and w cells. Landmarks and flow are in crop units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from dawn.face import mesh as lm
from dawn.models.blocks import identity_grid, invert_2x2


class RegionState(NamedTuple):
    """Landmark regions of one picture."""

    points: Float[Tensor, "B 478 2"]
    center: Float[Tensor, "B K 2"]
    covariance: Float[Tensor, "B K 2 2"]


def float32_region(like: Tensor) -> torch.autocast:
    """Switch mixed precision off for places, which need more than the eight bits of bfloat16."""
    return torch.autocast(like.device.type, enabled=False)


class LandmarkRegions(nn.Module):
    """Affine motion of landmark groups (the ``lite`` provider; no parameters).

    Each group's affine map from driving to source is fitted by least squares. A thin group, such as a lip, does not fix all
    six numbers; so a ridge draws its map towards the whole head's.
    """

    ridge = 0.15
    """Weight of the head's map, as a share of the group's own spread."""
    min_std = 0.02
    """Smallest standard deviation of a heat map, in crop units (1.3 pixels at 128)."""

    assignment: Tensor
    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        groups = list(lm.REGION_GROUPS.values())
        assignment = torch.zeros(len(groups), max(len(g) for g in groups), dtype=torch.long)
        weight = torch.zeros(assignment.shape)
        for row, group in enumerate(groups):
            assignment[row, : len(group)] = torch.tensor(group)
            weight[row, : len(group)] = 1.0 / len(group)
        self.count = len(groups)
        self.register_buffer("assignment", assignment, persistent=False)
        self.register_buffer("weight", weight[..., None], persistent=False)

    def state(self, landmarks: Float[Tensor, "B 478 _"]) -> RegionState:
        """Find the regions' centres and covariances."""
        points = landmarks[..., :2]
        grouped = points[:, self.assignment]
        center = (grouped * self.weight).sum(2)
        centred = grouped - center[:, :, None]
        with float32_region(points):
            return RegionState(points, center, (centred * self.weight).transpose(2, 3) @ centred)

    def maps(self, driving: RegionState, source: RegionState) -> Float[Tensor, "B N 2 3"]:
        """Fit the affine maps from driving to source positions; the background, which is first, stays in place."""
        affine = self._affine(driving, source)
        with float32_region(affine):
            shift = source.center[..., None] - affine @ driving.center[..., None]
        maps = torch.cat((affine, shift), -1)
        stay = torch.eye(2, 3, device=maps.device, dtype=maps.dtype)
        return torch.cat((stay.expand(maps.shape[0], 1, 2, 3), maps), 1)

    def _affine(self, driving: RegionState, source: RegionState) -> Float[Tensor, "B K 2 2"]:
        """Fit the maps' linear parts."""
        drv = (driving.points[:, self.assignment] - driving.center[:, :, None]) * self.weight
        src = source.points[:, self.assignment] - source.center[:, :, None]
        with float32_region(drv):
            cross = src.transpose(2, 3) @ drv
            head = cross[:, -1:] @ invert_2x2(driving.covariance[:, -1:])
            spread = driving.covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
            strength = self.ridge * spread + 1e-6
            eye = torch.eye(2, device=cross.device, dtype=cross.dtype)
            return (cross + strength * head) @ invert_2x2(driving.covariance + strength * eye)

    def heat(self, state: RegionState, size: int) -> Float[Tensor, "B K {size} {size}"]:
        """Draw every region's heat map, exp(-d' C^-1 d / 2)."""
        grid = identity_grid(size, size, state.points)
        eye = torch.eye(2, device=grid.device, dtype=grid.dtype)
        precision = invert_2x2(state.covariance + self.min_std**2 * eye)
        offset = grid[None, None] - state.center[:, :, None, None]
        p = precision[:, :, None, None]
        x, y = offset[..., 0], offset[..., 1]
        distance = p[..., 0, 0] * x * x + 2 * p[..., 0, 1] * x * y + p[..., 1, 1] * y * y
        return (-0.5 * distance).exp()


def apply_maps(maps: Float[Tensor, "B N 2 3"], size: int) -> Float[Tensor, "B N {size} {size} 2"]:
    """Apply affine maps to the centres of size x size cells: where each cell comes from."""
    x, y = identity_grid(size, size, maps).unsqueeze(-2).unbind(-1)
    column = maps[:, :, None, None].unbind(-1)
    return x * column[0] + y * column[1] + column[2]


def blend_maps(maps: Float[Tensor, "B N 2 3"], share: Float[Tensor, "B N h w"]) -> Float[Tensor, "B h w 2"]:
    """Apply the mean of affine maps, weighted by their share of every cell.

    Means of affine maps are affine, so six numbers a cell are mixed instead of N grids.
    """
    with float32_region(maps):
        weight = share.permute(0, 2, 3, 1).flatten(1, 2).to(maps.dtype)
        mixed = (weight @ maps.flatten(2)).view(len(maps), *share.shape[2:], 2, 3)
    x, y = identity_grid(share.shape[2], share.shape[3], maps).unsqueeze(-2).unbind(-1)
    return mixed[..., 0] * x + mixed[..., 1] * y + mixed[..., 2]


LID_CELL = 2 / 64
"""Side of one cell of the grid for lids, in crop units (two pixels at 128)."""
LID_SHARPNESS_CELLS = 0.55
"""Gaussian width of a lid landmark's influence. Near an eye's height, upper and lower lid would cancel."""
LID_REACH_CELLS = 1.5
"""Gaussian width of the lids' influence on the flow around them."""


def _window(cells: Float[Tensor, "B V 2"], margin: int, size: int) -> tuple[Int[Tensor, "B w"], Int[Tensor, "B h"]]:
    """Return columns and rows of the part of a size x size grid that holds the points, given in cells, and a margin.

    One window size serves the batch. At the far border the window is moved back inside.
    """
    low = (cells.amin(1).floor().long() - margin).clamp(0, size - 1)
    high = (cells.amax(1).ceil().long() + margin).clamp(1, size)
    width, height = (int(extent) for extent in (high - low).amax(0).clamp_min(1).tolist())
    start = torch.minimum(low, low.new_tensor([size - width, size - height]))
    columns = start[:, :1] + torch.arange(width, device=cells.device)
    return columns, start[:, 1:] + torch.arange(height, device=cells.device)


def lid_flow(
    driving: Float[Tensor, "B 478 2"], source: Float[Tensor, "B 478 2"], grid: Float[Tensor, "B h w 2"]
) -> Float[Tensor, "B h w 2"]:
    """Let the cells around the eyes follow the lids' landmarks.

    Affine regions are too coarse for a lid, which is one or two cells thick. Near the eyes the flow becomes the landmarks'
    own displacement, with normalised Gaussian weights. What lies above a shut lid is taken from above the open one, so
    that lid skin covers the eye.

    Args:
        driving: Driving landmarks.
        source: The portrait's landmarks.
        grid: Absolute flow.
    """
    size = grid.shape[1]
    out = grid.clone()
    for contour, half in ((lm.RIGHT_EYE, 0), (lm.LEFT_EYE, 1)):
        ring = lm.EYE_SURROUNDINGS[16 * half : 16 * half + 16]
        points = list(contour + ring)
        d, s = driving[:, points], source[:, points]
        cells = (d + 1) * (size / 2)
        columns, rows = _window(cells, size // 16, size)
        x, y = (columns + 0.5) * (2 / size) - 1, (rows + 0.5) * (2 / size) - 1
        squared = (x[:, None, None] - d[..., 0, None, None]).square() + (
            y[:, None, :, None] - d[..., 1, None, None]
        ).square()
        weight = (-squared / (2 * (LID_SHARPNESS_CELLS * LID_CELL) ** 2)).softmax(1)
        shift = torch.einsum("bnhw,bnc->bhwc", weight, s - d)
        # Full strength at the lids, fading towards the rings around them.
        nearest = squared[:, : len(contour)].amin(1)
        strength = (-nearest / (2 * (LID_REACH_CELLS * LID_CELL) ** 2)).exp()
        # Nothing is left at the window's edge, four cells away, whose place depends on the batch.
        strength = (1.6 * strength - 0.06).clamp(0, 1).unsqueeze(-1)
        batch = torch.arange(grid.shape[0], device=grid.device)[:, None, None]
        window = (batch, rows[:, :, None], columns[:, None, :])
        here = torch.stack(
            (x[:, None].expand(-1, rows.shape[1], -1), y[:, :, None].expand(-1, -1, columns.shape[1])), -1
        )
        out[window] = torch.lerp(grid[window], here + shift, strength)
    return out


GUIDE_CONTOURS: dict[str, tuple[int, ...]] = {
    "inner_lips": lm.INNER_LIPS,
    "outer_lips": lm.OUTER_LIPS,
    "right_eye": lm.RIGHT_EYE,
    "left_eye": lm.LEFT_EYE,
}
"""Contours drawn for the networks. The first is the mouth's opening, the last two are the eyes."""


CONTOUR_MARGIN_CELLS = 4
"""Beyond this distance from a contour its map is set to zero; it would be below 0.0004."""


def draw_contours(
    points: Float[Tensor, "B 478 2"], size: int, softness_cells: float = 0.5
) -> Float[Tensor, "B 4 {size} {size}"]:
    """Draw soft filled contours in [0, 1]: how much of each cell lies inside the polygon.

    The value is the sigmoid of the signed distance to the outline. So a shut mouth, whose polygon has no inside, leaves
    nearly nothing. Only a window around each contour is computed.
    """
    maps = points.new_zeros(points.shape[0], len(GUIDE_CONTOURS), size, size)
    cells = (points + 1) * (size / 2)  # cell i spans [i, i + 1]
    for index, contour in enumerate(GUIDE_CONTOURS.values()):
        polygon = cells[:, list(contour)]
        columns, rows = _window(polygon, CONTOUR_MARGIN_CELLS, size)
        inside = fill_polygon(columns + 0.5, rows + 0.5, polygon, softness_cells)
        batch = torch.arange(points.shape[0], device=points.device)[:, None, None]
        maps[batch, index, rows[:, :, None], columns[:, None, :]] = inside
    return maps


def fill_polygon(
    x: Float[Tensor, "B w"], y: Float[Tensor, "B h"], polygon: Float[Tensor, "B V 2"], softness: float
) -> Float[Tensor, "B h w"]:
    """Fill closed polygons softly.

    Args:
        x: Columns.
        y: Rows.
        polygon: Corners, in the same cells.
        softness: Width of the outline, in cells.
    """
    start = polygon[:, :, None, None]
    edge = polygon.roll(-1, 1)[:, :, None, None] - start
    px, py = x[:, None, None, :] - start[..., 0], y[:, None, :, None] - start[..., 1]
    ex, ey = edge[..., 0], edge[..., 1]
    along = ((px * ex + py * ey) / (ex * ex + ey * ey).clamp_min(1e-9)).clamp(0, 1)
    squared = (px - along * ex).square() + (py - along * ey).square()
    distance = squared.amin(1).clamp_min(1e-9).sqrt()
    # Even-odd rule: a horizontal ray to the right crosses an edge if the edge spans the point's height.
    spans = (py < 0) != (py < ey)
    slope = ex / torch.where(ey.abs() < 1e-6, torch.full_like(ey, 1e-6), ey)
    crosses = spans & (px < py * slope)
    sign = 1 - 2 * (crosses.sum(1) % 2).to(distance.dtype)
    value = torch.sigmoid(-sign * distance / softness)
    return torch.where(sign * distance < CONTOUR_MARGIN_CELLS, value, torch.zeros_like(value))


def opening_growth(before: Float[Tensor, " B"], after: Float[Tensor, " B"], few: float = 4.0) -> Float[Tensor, " B"]:
    """Estimate which share of an area is new, in [0, 1].

    Args:
        before: Area in the one picture, in cells.
        after: Area in the other.
        few: Areas of this size may be only a softened outline; they count half.
    """
    return (1.5 * (1 - before / after.clamp_min(1e-3))).clamp(0, 1) * (after / (after + few))
