"""Latent flow generator as published (paper section 3.2): learned regions, pixelwise flow, multi-scale warp and blend.

    source ─ encode ─▶ features at 1, 1/2, 1/4 ──────────────┐
    source, driving ─ motion ─▶ grid, occlusion (S = R / 4) ─┴▶ warp, blend, paint ─▶ blend with warped source ─▶ frame

The flow and the occlusion map are the latent motion that the A2V-FDM diffuses, so that a generated clip needs ``encode``
once and ``decode`` for its frames; ``motion`` makes the training targets. ``models.lite.lfg`` is the ``lite`` generator.

Shapes: B batch, R side of pictures, S = R / 4 side of the flow, C channels, K regions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dawn.config import PaperLFGConfig
from dawn.errors import ConfigError
from dawn.models.blocks import DownBlock, Hourglass, ResBlock, SameBlock, UpBlock
from dawn.models.nouns import Flow
from dawn.models.paper.regions import (
    FLOW_REDUCTION,
    BackgroundPredictor,
    LearnedRegions,
    RegionPredictor,
    downsample,
    region_heat,
    sample,
    sparse_motions,
    widen_to_float32,
)

HEAD_KERNEL = 7
"""Kernel of the first and last convolutions and of the flow's heads."""


class PaperSource(NamedTuple):
    """What is computed once for a portrait."""

    image: Float[Tensor, "B 3 R R"]
    features: tuple[Float[Tensor, "B a R R"], Float[Tensor, "B b R//2 R//2"], Float[Tensor, "B c R//4 R//4"]]

    @property
    def feature(self) -> Float[Tensor, "B C S S"]:
        """What the A2V network sees of the portrait."""
        return self.features[-1]


class PaperDecoded(NamedTuple):
    """A frame in [0, 1] and what it was blended from."""

    frame: Float[Tensor, "B 3 R R"]
    painted: Float[Tensor, "B 3 R R"]
    """The decoder's own picture before the last blend."""
    moved: Float[Tensor, "B 3 R R"]
    """The warped source."""


class PaperResult(NamedTuple):
    """One training pass: the decoded frame and everything that led to it."""

    decoded: PaperDecoded
    flow: Flow
    source: LearnedRegions
    driving: LearnedRegions
    background: Float[Tensor, "B 2 3"]
    changed: LearnedRegions | None
    """Regions of a third picture, if one was given."""


class FlowPredictor(nn.Module):
    """Chooses for every cell with which region it moves, and whether the source shows it at all."""

    def __init__(self, config: PaperLFGConfig) -> None:
        super().__init__()
        regions = config.regions.count + 1
        self.hourglass = Hourglass(4 * regions, config.flow_width, config.flow_depth, config.flow_max_width)
        channels = self.hourglass.out_channels
        self.mask_head = nn.Conv2d(channels, regions, HEAD_KERNEL, padding=HEAD_KERNEL // 2)
        self.occlusion_head = nn.Conv2d(channels, 1, HEAD_KERNEL, padding=HEAD_KERNEL // 2)

    def clues(
        self,
        image: Float[Tensor, "B 3 R R"],
        motions: Float[Tensor, "B N S S 2"],
        driving: LearnedRegions,
        source: LearnedRegions,
    ) -> tuple[Float[Tensor, "B N 1 S S"], Float[Tensor, "B N 3 S S"]]:
        """Prepare what the choice is made from: heat, and the small source moved in each of N = K + 1 ways.

        Heat is the driving regions' minus the source's. The background, which is everywhere, has none.
        """
        batch, regions, height, width = motions.shape[:4]
        heat = region_heat(driving, height, width) - region_heat(source, height, width)
        heat = F.pad(heat, (0, 0, 0, 0, 1, 0)).unsqueeze(2)
        small = downsample(image, FLOW_REDUCTION)
        small = small[:, None].expand(-1, regions, -1, -1, -1).flatten(0, 1)
        return heat, sample(small, motions.flatten(0, 1)).view(batch, regions, 3, height, width)

    def forward(
        self,
        image: Float[Tensor, "B 3 R R"],
        driving: LearnedRegions,
        source: LearnedRegions,
        background: Float[Tensor, "B 2 3"],
    ) -> Flow:
        """Predict the flow that takes the source ``image`` to the driving regions."""
        height, width = image.shape[2] // FLOW_REDUCTION, image.shape[3] // FLOW_REDUCTION
        motions = sparse_motions(driving, source, background, height, width)
        h = self.hourglass(torch.cat(self.clues(image, motions, driving, source), 2).flatten(1, 2))
        mask = widen_to_float32(self.mask_head(h)).softmax(1)
        return Flow((mask.unsqueeze(-1) * motions).sum(1), widen_to_float32(self.occlusion_head(h)).sigmoid())


class PaperLFG(nn.Module):
    """The published generator with the networks that find its motion. All pictures are RGB in [0, 1]."""

    def __init__(self, config: PaperLFGConfig) -> None:
        """Build the networks.

        Raises:
            ConfigError: The picture is too small for the number of levels.
        """
        super().__init__()
        self.config = config
        for name, depth in (("flow_depth", config.flow_depth), ("regions.depth", config.regions.depth)):
            if config.latent_size % 2**depth:
                raise ConfigError(
                    f"{name} = {depth} needs pictures whose side is a multiple of {FLOW_REDUCTION * 2**depth} px,"
                    f" not {config.image_size_px}: use fewer levels or larger pictures"
                )
        a, b, c = (min(config.max_width, config.width * 2**i) for i in range(3))
        self.region_predictor = RegionPredictor(config.regions)
        self.background_predictor = BackgroundPredictor(config.regions)
        self.flow_predictor = FlowPredictor(config)
        self.first = SameBlock(3, a, HEAD_KERNEL)
        self.down_blocks = nn.ModuleList([DownBlock(a, b), DownBlock(b, c)])
        self.bottleneck = nn.Sequential(*(ResBlock(c) for _ in range(config.res_blocks)))
        self.up_blocks = nn.ModuleList([UpBlock(c, b), UpBlock(b, a)])
        self.last = nn.Conv2d(a, 3, HEAD_KERNEL, padding=HEAD_KERNEL // 2)

    def encode(self, image: Float[Tensor, "B 3 R R"]) -> PaperSource:
        """Compute a portrait's features; ``.feature`` conditions the A2V network."""
        fine = self.first(image)
        middle = self.down_blocks[0](fine)
        return PaperSource(image, (fine, middle, self.down_blocks[1](middle)))

    def decode(
        self, source: PaperSource, grid: Float[Tensor, "B S S 2"], occlusion: Float[Tensor, "B 1 S S"]
    ) -> Float[Tensor, "B 3 R R"]:
        """Draw the frames of a latent motion; one source may serve them all."""
        return self.decode_parts(source, Flow(grid, occlusion)).frame

    def decode_parts(self, source: PaperSource, flow: Flow) -> PaperDecoded:
        """Warp and blend at three scales, paint, and blend with the warped source picture."""
        fine, middle, coarse = source.features
        moved, keep = _warp(coarse, flow)
        h = _blend(self.bottleneck(moved * keep), moved, keep)
        h = _blend(self.up_blocks[0](h), *_warp(middle, flow))
        h = _blend(self.up_blocks[1](h), *_warp(fine, flow))
        painted = self.last(h).sigmoid()
        moved, keep = _warp(source.image, flow)
        return PaperDecoded(_blend(painted, moved, keep), painted, moved)

    def motion(self, source: Float[Tensor, "B 3 R R"], driving: Float[Tensor, "B 3 R R"]) -> Flow:
        """Find the latent motion between pictures: where the driving one's cells come from in the source."""
        return self._motion(source, driving)[0]

    def _motion(
        self, source: Float[Tensor, "B 3 R R"], driving: Float[Tensor, "B 3 R R"]
    ) -> tuple[Flow, LearnedRegions, LearnedRegions, Float[Tensor, "B 2 3"]]:
        of_source, of_driving = self.region_predictor(source), self.region_predictor(driving)
        background = self.background_predictor(source, driving)
        flow = self.flow_predictor(source, of_driving, of_source, background)
        return flow, of_source, of_driving, background

    def forward(
        self,
        source: Float[Tensor, "B 3 R R"],
        driving: Float[Tensor, "B 3 R R"],
        changed: Float[Tensor, "B 3 R R"] | None = None,
    ) -> PaperResult:
        """Run the training pass: rebuild the driving picture from the source.

        ``changed`` is a picture whose regions are wanted too, for equivariance losses.
        """
        flow, of_source, of_driving, background = self._motion(source, driving)
        decoded = self.decode_parts(self.encode(source), flow)
        of_changed = None if changed is None else self.region_predictor(changed)
        return PaperResult(decoded, flow, of_source, of_driving, background, of_changed)


def _warp(x: Float[Tensor, "_ C H W"], flow: Flow) -> tuple[Float[Tensor, "B C H W"], Float[Tensor, "B 1 H W"]]:
    """Sample x, one for all or one each, at a flow; return it and the share of it that is kept."""
    size = (x.shape[2], x.shape[3])
    grid = _enlarge(flow.grid.permute(0, 3, 1, 2), size).permute(0, 2, 3, 1)
    keep = _enlarge(flow.occlusion, size)
    return sample(x.expand(len(grid), *x.shape[1:]), grid), keep.to(x.dtype)


def _enlarge(x: Float[Tensor, "B C h w"], size: tuple[int, int]) -> Float[Tensor, "B C H W"]:
    return x if x.shape[2:] == size else F.interpolate(x, size, mode="bilinear", align_corners=False)


def _blend(
    made: Float[Tensor, "B C H W"], moved: Float[Tensor, "B C H W"], keep: Float[Tensor, "B 1 H W"]
) -> Float[Tensor, "B C H W"]:
    """Keep the moved source where it shows what is wanted, and paint elsewhere."""
    return moved * keep + made * (1 - keep)
