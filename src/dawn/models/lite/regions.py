"""Regions: what drives the flow. In ``lite`` they are affine fits to groups of face-mesh landmarks, nothing is learned.

A provider gives, for every region, an affine map (where each output cell would come from if it moved with that region)
and a heat map (how near each cell is to the region).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from dawn.face import mesh as lm
from dawn.models.blocks import identity_grid


class RegionState(NamedTuple):
    """Landmark regions of one picture: points (B, 478, 2), centre (B, K, 2), covariance (B, K, 2, 2)."""

    points: Tensor
    center: Tensor
    covariance: Tensor


def invert_2x2(matrix: Tensor) -> Tensor:
    """Inverse of (..., 2, 2) matrices in closed form."""
    a, b, c, d = matrix[..., 0, 0], matrix[..., 0, 1], matrix[..., 1, 0], matrix[..., 1, 1]
    adjugate = torch.stack((torch.stack((d, -b), -1), torch.stack((-c, a), -1)), -2)
    return adjugate / (a * d - b * c)[..., None, None]


def exactly(like: Tensor) -> torch.autocast:
    """Products within are not rounded to bfloat16 when a network is trained in it: places need more than eight bits."""
    return torch.autocast(like.device.type, enabled=False)


class LandmarkRegions(nn.Module):
    """Affine motion of landmark groups (the ``lite`` provider; no parameters).

    Each group's affine map from driving to source is fitted by least squares, drawn towards the whole head's map by
    a ridge, since thin groups (a lip, a lid) do not fix all six numbers.
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

    def state(self, landmarks: Tensor) -> RegionState:
        """landmarks (B, 478, 2 or 3) crop units -> region centres and covariances."""
        points = landmarks[..., :2]
        grouped = points[:, self.assignment]
        center = (grouped * self.weight).sum(2)
        centred = grouped - center[:, :, None]
        with exactly(points):
            return RegionState(points, center, (centred * self.weight).transpose(2, 3) @ centred)

    def maps(self, driving: RegionState, source: RegionState) -> Tensor:
        """Where every region's points come from, affine maps (B, K+1, 2, 3); the background (first) stays in place."""
        affine = self._affine(driving, source)
        with exactly(affine):
            shift = source.center[..., None] - affine @ driving.center[..., None]
        maps = torch.cat((affine, shift), -1)
        stay = torch.eye(2, 3, device=maps.device, dtype=maps.dtype)
        return torch.cat((stay.expand(maps.shape[0], 1, 2, 3), maps), 1)

    def _affine(self, driving: RegionState, source: RegionState) -> Tensor:
        """Linear parts (B, K, 2, 2) of the maps driving -> source."""
        drv = (driving.points[:, self.assignment] - driving.center[:, :, None]) * self.weight
        src = source.points[:, self.assignment] - source.center[:, :, None]
        with exactly(drv):
            cross = src.transpose(2, 3) @ drv
            head = cross[:, -1:] @ invert_2x2(driving.covariance[:, -1:])
            spread = driving.covariance.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None]
            strength = self.ridge * spread + 1e-6
            eye = torch.eye(2, device=cross.device, dtype=cross.dtype)
            return (cross + strength * head) @ invert_2x2(driving.covariance + strength * eye)

    def heat(self, state: RegionState, size: int) -> Tensor:
        """exp(-d' C^-1 d / 2) of every region, (B, K, size, size)."""
        grid = identity_grid(size, size, state.points)
        eye = torch.eye(2, device=grid.device, dtype=grid.dtype)
        precision = invert_2x2(state.covariance + self.min_std**2 * eye)
        offset = grid[None, None] - state.center[:, :, None, None]
        p = precision[:, :, None, None]
        x, y = offset[..., 0], offset[..., 1]
        distance = p[..., 0, 0] * x * x + 2 * p[..., 0, 1] * x * y + p[..., 1, 1] * y * y
        return (-0.5 * distance).exp()


def applied(maps: Tensor, size: int) -> Tensor:
    """Where affine maps (B, N, 2, 3) say that each of size x size cells comes from, (B, N, size, size, 2)."""
    x, y = identity_grid(size, size, maps).unsqueeze(-2).unbind(-1)
    column = maps[:, :, None, None].unbind(-1)
    return x * column[0] + y * column[1] + column[2]


def blended(maps: Tensor, share: Tensor) -> Tensor:
    """The mean of what affine maps (B, N, 2, 3) say, by their share (B, N, h, w) of every cell: (B, h, w, 2).

    Means of affine maps are affine: six numbers a cell are mixed instead of N grids.
    """
    with exactly(maps):
        weight = share.permute(0, 2, 3, 1).flatten(1, 2).to(maps.dtype)
        mixed = (weight @ maps.flatten(2)).view(len(maps), *share.shape[2:], 2, 3)
    x, y = identity_grid(share.shape[2], share.shape[3], maps).unsqueeze(-2).unbind(-1)
    return mixed[..., 0] * x + mixed[..., 1] * y + mixed[..., 2]


LID_CELL = 2 / 64
"""Side of one cell of the grid that lids are thought on, in crop units (two pixels at 128)."""
LID_SHARPNESS_CELLS = 0.55
"""How far a landmark wins over its neighbours: much less than an eye's height, or upper and lower lid would cancel."""
LID_REACH_CELLS = 1.5
"""How far from the lids their motion holds."""


def _window(cells: Tensor, margin: int, size: int) -> tuple[Tensor, Tensor]:
    """Columns (B, w) and rows (B, h) of the part of a size x size grid that holds points (B, V, 2), in cells, and a margin.

    One window size serves the batch; at the far border the window is moved back inside.
    """
    low = (cells.amin(1).floor().long() - margin).clamp(0, size - 1)
    high = (cells.amax(1).ceil().long() + margin).clamp(1, size)
    width, height = (int(extent) for extent in (high - low).amax(0).clamp_min(1).tolist())
    start = torch.minimum(low, low.new_tensor([size - width, size - height]))
    columns = start[:, :1] + torch.arange(width, device=cells.device)
    return columns, start[:, 1:] + torch.arange(height, device=cells.device)


def lid_flow(driving: Tensor, source: Tensor, grid: Tensor) -> Tensor:
    """Let the cells around the eyes follow the lids' landmarks exactly.

    Affine regions are too coarse for a lid, which is one or two cells thick. driving, source (B, 478, 2); grid
    (B, h, w, 2) absolute flow; returns the same, near the eyes replaced by the landmarks' own displacement (normalised
    Gaussian weights). What lies above a shut lid is taken from above the open one, so that lid skin covers the eye.
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
"""Contours drawn for the networks (the first one is the mouth's opening, the last two the eyes')."""


CONTOUR_MARGIN_CELLS = 4
"""Beyond this distance from a contour the map is zero (it would be below 0.0004)."""


def draw_contours(points: Tensor, size: int, softness_cells: float = 0.5) -> Tensor:
    """Soft filled contours: how much of each cell lies inside the polygon.

    points (B, 478, 2) crop units -> (B, 4, size, size) in [0, 1]: sigmoid of the signed distance to the outline, so
    that a shut mouth, whose polygon has no inside, leaves nearly nothing. Only a window around each contour is computed.
    """
    maps = points.new_zeros(points.shape[0], len(GUIDE_CONTOURS), size, size)
    cells = (points + 1) * (size / 2)  # cell i spans [i, i + 1]
    for index, contour in enumerate(GUIDE_CONTOURS.values()):
        polygon = cells[:, list(contour)]
        columns, rows = _window(polygon, CONTOUR_MARGIN_CELLS, size)
        inside = inside_polygon(columns + 0.5, rows + 0.5, polygon, softness_cells)
        batch = torch.arange(points.shape[0], device=points.device)[:, None, None]
        maps[batch, index, rows[:, :, None], columns[:, None, :]] = inside
    return maps


def inside_polygon(x: Tensor, y: Tensor, polygon: Tensor, softness: float) -> Tensor:
    """Soft inside test of closed polygons (B, V, 2) at columns x (B, w) and rows y (B, h), all in cells: (B, h, w)."""
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


def opening_growth(before: Tensor, after: Tensor, few: float = 4.0) -> Tensor:
    """How much of an area (B,) is new, in [0, 1]. few: areas of so many cells may be nothing but a softened outline."""
    return (1.5 * (1 - before / after.clamp_min(1e-3))).clamp(0, 1) * (after / (after + few))
