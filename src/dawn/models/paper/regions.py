"""Learned regions and background motion, as published (paper section 3.2; the design is MRAA's).

Nothing is told about faces here: a network marks K regions with heat maps, and each region's mean and spread over the
picture are the affine frame that moves with it. ``models.lite.regions`` is the counterpart for ``lite``.

    picture ─ downsample ─ hourglass ─▶ K heat maps ─▶ shift, covariance ─ principal axes ─▶ affine
    source, driving ───── encoder ────▶ one affine map for what belongs to no region

All of it keeps the published geometry (``published_grid``, ``sample``): the released weights were trained with it.

Shapes: B batch, R side of pictures, h and w of heat maps, K regions.
"""

from __future__ import annotations

from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dawn.config import RegionsConfig
from dawn.models.blocks import DownBlock, Hourglass, invert_2x2

FLOW_REDUCTION = 4
"""Regions and flow are computed on a picture of a quarter of the side."""
ROUND = 1e-6
"""A covariance whose axes differ by less than this share is a circle: it has no principal axes."""
MIN_VARIANCE = 1e-12
"""Floor of variances and determinants; one cell of the grid has about 3e-4."""


class LearnedRegions(NamedTuple):
    """Regions of one picture."""

    shift: Float[Tensor, "B K 2"]
    """Mean position."""
    covariance: Float[Tensor, "B K 2 2"]
    affine: Float[Tensor, "B K 2 2"]
    """Columns are the principal axes, scaled by the standard deviations."""
    heat: Float[Tensor, "B K h w"]
    """Sums to 1 over the picture."""


def published_grid(height: int, width: int, like: Tensor) -> Float[Tensor, "{height} {width} 2"]:
    """Make positions in (x, y) order, from -1 at the first cell's centre to 1 at the last one's.

    This is the ``align_corners=True`` convention. ``sample`` follows the other one, in which ±1 are the outer borders. So
    sampling with this grid zooms in by half a pixel at each border and darkens the rim. The published weights were trained
    with that mixture; correcting one half of it moves everything they draw. ``blocks.identity_grid`` is the consistent
    grid, which ``lite`` uses.
    """
    ys = 2 * torch.arange(height, device=like.device, dtype=like.dtype) / (height - 1) - 1
    xs = 2 * torch.arange(width, device=like.device, dtype=like.dtype) / (width - 1) - 1
    return torch.stack((xs.expand(height, width), ys[:, None].expand(height, width)), -1)


def sample(
    x: Float[Tensor, "B C H W"], grid: Float[Tensor, "B h w 2"], padding: str = "zeros"
) -> Float[Tensor, "B C h w"]:
    """Sample pictures bilinearly, black outside, with ``align_corners=False`` (see ``published_grid``)."""
    # Half precision has too few digits for positions.
    dtype = torch.promote_types(x.dtype, grid.dtype)
    out = F.grid_sample(x.to(dtype), grid.to(dtype), mode="bilinear", padding_mode=padding, align_corners=False)
    return out.to(x.dtype)


def gaussian_kernel(reduction: int) -> Float[Tensor, "k k"]:
    """Make the antialiasing kernel of a reduction, float64: sigma is (reduction - 1) / 2, cut at four sigmas."""
    sigma = (reduction - 1) / 2
    radius = round(4 * sigma)
    offset = torch.arange(-radius, radius + 1, dtype=torch.float64)
    line = torch.exp(-offset.square() / (2 * sigma**2))
    kernel = line[:, None] * line
    return kernel / kernel.sum()


def downsample(x: Float[Tensor, "B C H W"], reduction: int) -> Float[Tensor, "B C H//{reduction} W//{reduction}"]:
    """Take every ``reduction``-th pixel of the smoothed picture, from the first one."""
    if reduction == 1:
        return x
    kernel = gaussian_kernel(reduction).to(x)
    weight = kernel.expand(x.shape[1], 1, *kernel.shape)
    return F.conv2d(x, weight, stride=reduction, padding=kernel.shape[0] // 2, groups=x.shape[1])


def widen_to_float32(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Widen half precision, which has too few digits for means over a picture, positions and the softmax's mixture."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def multiply_2x2(a: Float[Tensor, "*batch 2 2"], b: Float[Tensor, "*batch 2 2"]) -> Float[Tensor, "*batch 2 2"]:
    """Multiply matrices element by element, so that mixed precision leaves the product alone."""
    return (a.unsqueeze(-1) * b.unsqueeze(-3)).sum(-2)


def principal_axes(
    covariance: Float[Tensor, "*batch 2 2"],
) -> tuple[Float[Tensor, "*batch 2 2"], Float[Tensor, "*batch 2"]]:
    """Find the axes of covariances, in columns, widest first, and the standard deviations along them.

    An axis has no direction, so its sign is a convention: the first axis points to negative x, and the pair has determinant
    -1. The published code takes LAPACK's singular value decomposition. Its determinant is -1 too, but the sign of both
    columns together depends on the numbers. That joint sign is undone where two regions are compared (``sparse_motions``),
    and a consistent determinant cancels there; so the flows are the same. Written out, the result does not depend on the
    device or on the linear algebra library, as a decomposition's signs do.
    """
    a, b, c = covariance[..., 0, 0], covariance[..., 0, 1], covariance[..., 1, 1]
    middle, half = (a + c) / 2, (a - c) / 2
    # A circle has no axes: it gets the picture's, and no gradient, which would be infinite.
    is_round = half.square() + b.square() <= (ROUND * middle).square()
    half = torch.where(is_round, ROUND * middle.detach() + MIN_VARIANCE, half)
    b = torch.where(is_round, torch.zeros_like(b), b)
    major = (middle + (half.square() + b.square()).sqrt()).clamp_min(MIN_VARIANCE)
    minor = ((a * c - b * b) / major).clamp_min(MIN_VARIANCE)
    angle = torch.atan2(b, half) / 2
    cos, sin = angle.cos(), angle.sin()
    axes = torch.stack((torch.stack((-cos, -sin), -1), torch.stack((-sin, cos), -1)), -2)
    return axes, torch.stack((major, minor), -1).sqrt()


class RegionPredictor(nn.Module):
    """Marks the regions of a picture."""

    def __init__(self, config: RegionsConfig) -> None:
        super().__init__()
        self.temperature = config.temperature
        self.hourglass = Hourglass(3, config.width, config.depth, config.max_width)
        self.head = nn.Conv2d(self.hourglass.out_channels, config.count, 7, padding=3)

    def forward(self, image: Float[Tensor, "B 3 R R"]) -> LearnedRegions:
        """Mark the regions of a picture in [0, 1]; heat maps have a quarter of its side."""
        logits = widen_to_float32(self.head(self.hourglass(downsample(image, FLOW_REDUCTION))))
        heat = (logits.flatten(2) / self.temperature).softmax(2).view_as(logits)
        grid = published_grid(heat.shape[2], heat.shape[3], heat)
        weight = heat.unsqueeze(-1)
        shift = (weight * grid).sum((2, 3))
        offset = grid - shift[:, :, None, None]
        covariance = (weight.unsqueeze(-1) * offset.unsqueeze(-1) * offset.unsqueeze(-2)).sum((2, 3))
        axes, spread = principal_axes(covariance)
        return LearnedRegions(shift, covariance, axes * spread.unsqueeze(-2), heat)


class BackgroundPredictor(nn.Module):
    """Finds one affine map for all that no region moves. Starts at the identity."""

    def __init__(self, config: RegionsConfig) -> None:
        super().__init__()
        widths = [6] + [min(config.max_width, config.width * 2 ** (i + 1)) for i in range(config.depth)]
        self.blocks = nn.Sequential(*(DownBlock(i, o) for i, o in pairwise(widths)))
        self.head = nn.Linear(widths[-1], 6)
        nn.init.zeros_(self.head.weight)
        with torch.no_grad():
            self.head.bias.copy_(torch.tensor([1.0, 0, 0, 0, 1, 0]))

    def forward(self, source: Float[Tensor, "B 3 R R"], driving: Float[Tensor, "B 3 R R"]) -> Float[Tensor, "B 2 3"]:
        """Predict the map from homogeneous driving positions to source positions."""
        h = self.blocks(torch.cat((source, driving), 1))
        return widen_to_float32(self.head(h.mean((2, 3)))).view(-1, 2, 3)


def region_heat(regions: LearnedRegions, height: int, width: int) -> Float[Tensor, "B K {height} {width}"]:
    """Draw exp(-d' C^-1 d / 2) around each region's mean, where it is 1."""
    covariance = regions.covariance
    a, b, c = (covariance[..., i, j, None, None] for i, j in ((0, 0), (0, 1), (1, 1)))
    grid = published_grid(height, width, covariance)
    x, y = (grid - regions.shift[:, :, None, None]).unbind(-1)
    distance = (c * x * x - 2 * b * x * y + a * y * y) / (a * c - b * b).clamp_min(MIN_VARIANCE)
    return (-0.5 * distance).exp()


def sparse_motions(
    driving: LearnedRegions, source: LearnedRegions, background: Float[Tensor, "B 2 3"], height: int, width: int
) -> Float[Tensor, "B N {height} {width} 2"]:
    """Find where every cell would come from if it moved with each of N = K + 1 movers; the background comes first.

    A region's map is turned by 180 degrees if it would mirror the x axis: its two frames then differ by the sign that
    principal axes do not have.
    """
    affine = multiply_2x2(source.affine, invert_2x2(driving.affine))
    affine = torch.where(affine[..., :1, :1] < 0, -affine, affine)[:, :, None, None]
    grid = published_grid(height, width, driving.shift)
    offset = grid - driving.shift[:, :, None, None]
    moved = (affine * offset.unsqueeze(-2)).sum(-1) + source.shift[:, :, None, None]
    around = background[:, None, None, None]
    still = (around[..., :2] * grid.unsqueeze(-2)).sum(-1) + around[..., 2]
    return torch.cat((still, moved), 1)
