"""Latent flow generator (paper section 3.2): a source picture and a motion → a frame.

    source ─ encode ─▶ features at 1, 1/2, 1/4 ───────────────────────┐
    driving regions ─ flow predictor ─▶ flow, occlusion ── warp, blend ┴▶ paint ─▶ blend with warped source ─▶ frame

The source is encoded once; any number of frames is then decoded from it. Mouth and eyes are painted a second time
(``lite.detail``), and the frame is doubled with what a larger portrait shows (``lite.fine``), as the configuration says.

Shapes: B batch, R side of the result, S side that is decoded, h and w of the flow, G contours (GG of two faces), K regions. A
landmark has 2 or 3 numbers, in crop units.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dawn.config import LFGConfig
from dawn.models.blocks import DownBlock, Hourglass, ResBlock, SameBlock, UpBlock, resize, upsample_sharp, warp
from dawn.models.lite.detail import DetailPainter
from dawn.models.lite.fine import FineStage
from dawn.models.lite.regions import (
    GUIDE_CONTOURS,
    LandmarkRegions,
    RegionState,
    apply_maps,
    blend_maps,
    draw_contours,
    lid_flow,
    opening_growth,
)
from dawn.models.nouns import Flow


class Source(NamedTuple):
    """What is computed once for a portrait."""

    full: Float[Tensor, "B 3 _ _"]
    """The input picture; with a fine stage it is doubled by ``upsample_sharp``."""
    image: Float[Tensor, "B 3 S S"]
    """The picture at the size that is decoded."""
    features: tuple[Float[Tensor, "B a S S"], Float[Tensor, "B b S//2 S//2"], Float[Tensor, "B c S//4 S//4"]]
    regions: RegionState
    heat: Float[Tensor, "B K h w"]
    """Heat maps of the regions."""
    contours: Float[Tensor, "B G 2*h 2*w"]
    """Lips and eyes, drawn."""
    details: tuple[Float[Tensor, "B _ _ _"], ...]
    """Mouth and eyes for the painter, at the decoded size."""
    fine_details: tuple[Float[Tensor, "B _ _ _"], ...]
    """The same for the fine stage's painter, at the full size."""

    def expand(self, frames: int) -> Source:
        """Repeat one portrait (B = 1) for ``frames`` frames, without a copy."""

        def grow(x: Tensor) -> Tensor:
            return x.expand(frames, *x.shape[1:])

        a, b, c = self.features
        regions = RegionState(*(grow(x) for x in self.regions))
        details, fine_details = (tuple(grow(x) for x in part) for part in (self.details, self.fine_details))
        features = (grow(a), grow(b), grow(c))
        heat, contours = grow(self.heat), grow(self.contours)
        return Source(grow(self.full), grow(self.image), features, regions, heat, contours, details, fine_details)


class Decoded(NamedTuple):
    """A frame and how it came about."""

    frame: Float[Tensor, "B 3 R R"]
    """About in [0, 1], not clamped."""
    painted: Float[Tensor, "B 3 S S"]
    """The decoder's own picture before the last blend (a training target)."""
    flow: Flow


class PixelwiseFlowPredictor(nn.Module):
    """Chooses for every cell which region it moves with, and whether the source shows it at all."""

    def __init__(self, config: LFGConfig, regions: int) -> None:
        super().__init__()
        self.cells = config.flow_cells
        self.regions = regions
        guides = 2 * len(GUIDE_CONTOURS)
        self.hourglass = Hourglass(
            4 * (regions + 1) + guides, config.flow_width, config.flow_depth, config.flow_max_width, config.pool_first
        )
        self.refine = SameBlock(self.hourglass.out_channels, config.flow_head_width, 1)
        self.head = nn.Conv2d(config.flow_head_width + guides, regions + 2, 3, padding=1)

    def forward(
        self,
        image: Float[Tensor, "B 3 S S"],
        heat: Float[Tensor, "B N h w"],
        maps: Float[Tensor, "B N 2 3"],
        guides: Float[Tensor, "B GG 2*h 2*w"],
    ) -> Flow:
        """Mix the maps of N = K + 1 movers, background and regions, cell by cell.

        Args:
            image: The source picture.
            heat: Driving minus source heat; the background's is zero.
            maps: Affine maps from driving to source positions.
            guides: Driving and source contours.
        """
        batch, regions = maps.shape[:2]
        small = resize(image, self.cells, self.cells)
        small = small[:, None].expand(-1, regions, -1, -1, -1).flatten(0, 1)
        moved = warp(small, apply_maps(maps, self.cells).flatten(0, 1)).view(batch, regions * 3, self.cells, self.cells)
        h = self.hourglass(torch.cat((heat, moved, F.avg_pool2d(guides, 2)), 1))
        h = resize(self.refine(h), *guides.shape[2:])
        out = self.head(torch.cat((h, guides), 1))
        return Flow(blend_maps(maps, out[:, :-1].softmax(1)), torch.sigmoid(out[:, -1:]))


class LatentFlowGenerator(nn.Module):
    """The ``lite`` generator: landmark regions, pixelwise flow, multi-scale warp and blend."""

    def __init__(self, config: LFGConfig) -> None:
        super().__init__()
        self.config = config
        a, b, c = config.widths
        guides = len(GUIDE_CONTOURS)
        self.region_provider = LandmarkRegions()
        self.flow_predictor = PixelwiseFlowPredictor(config, self.region_provider.count)
        self.first = SameBlock(3, a, config.first_kernel)
        self.down_blocks = nn.ModuleList([DownBlock(a, b, config.pool_first), DownBlock(b, c, config.pool_first)])
        self.guide_in = SameBlock(c + guides, c)
        self.bottleneck = nn.Sequential(*(ResBlock(c) for _ in range(config.res_blocks)))
        self.up_blocks = nn.ModuleList([UpBlock(c, b), UpBlock(b + guides, a)])
        self.last = nn.Conv2d(a, 3, config.last_kernel, padding=config.last_kernel // 2)
        self.detail = DetailPainter(config.detail, config.decoded_size_px) if config.detail else None
        self.fine = FineStage(config.fine, config.image_size_px) if config.fine else None

    def encode(self, image: Float[Tensor, "B 3 R R"], landmarks: Float[Tensor, "B 478 _"]) -> Source:
        """Encode a portrait in [0, 1], whose side is the one to decode or a multiple of it."""
        full, size = image, self.config.decoded_size_px
        image = resize(image, size, size)
        fine = self.first(image)
        middle = self.down_blocks[0](fine)
        coarse = self.down_blocks[1](middle)
        contours = draw_contours(landmarks[..., :2], 2 * self.config.flow_cells)
        details = self.detail.look(image, landmarks) if self.detail else ()
        fine_details = self.fine.look(full, landmarks) if self.fine else ()
        regions = self.region_provider.state(landmarks)
        heat = self.region_provider.heat(regions, self.config.flow_cells)
        full = upsample_sharp(full) if self.fine else full
        return Source(full, image, (fine, middle, coarse), regions, heat, contours, details, fine_details)

    def predict_flow(
        self, source: Source, landmarks: Float[Tensor, "B 478 _"]
    ) -> tuple[Flow, Float[Tensor, "B G H W"]]:
        """Turn driving landmarks into a flow, and into driving contours for the decoder."""
        cells = self.config.flow_cells
        driving = self.region_provider.state(landmarks)
        contours = draw_contours(driving.points, 2 * cells)
        maps = self.region_provider.maps(driving, source.regions)
        heat = self.region_provider.heat(driving, cells) - source.heat
        heat = torch.cat((torch.zeros_like(heat[:, :1]), heat), 1)
        flow = self.flow_predictor(source.image, heat, maps, torch.cat((contours, source.contours), 1))
        grid = flow.grid
        if self.config.lid_flow:
            # At full size: lids are a pixel thick, and the coarser levels are reduced from it.
            size = source.image.shape[-1]
            grid = resize(grid.permute(0, 3, 1, 2), size, size).permute(0, 2, 3, 1)
            grid = lid_flow(driving.points, source.regions.points, grid)
        occlusion = flow.occlusion * (1 - self._changed_openings(contours, source.contours))
        return Flow(grid, occlusion), contours

    def _changed_openings(
        self, driving: Float[Tensor, "B G H W"], source: Float[Tensor, "B G H W"]
    ) -> Float[Tensor, "B 1 H W"]:
        """Mark where the source cannot be copied, in [0, 1]: openings that it does not show, lips that close over its teeth.

        Without this the occlusion map goes to 1 everywhere, and mouths are stretched instead of opened.
        """
        inner, outer = 0, 1
        eye = self.config.eye_suppression
        out = torch.zeros_like(driving[:, :1])
        after, before = driving.sum((2, 3)), source.sum((2, 3))
        for index, strength in ((inner, 1.0), (2, eye), (3, eye)):
            share = strength * opening_growth(before[:, index], after[:, index])
            out = torch.maximum(out, share[:, None, None, None] * driving[:, index : index + 1])
        closing = self.config.closing_suppression * opening_growth(after[:, inner], before[:, inner])
        out = torch.maximum(out, closing[:, None, None, None] * driving[:, outer : outer + 1])
        if self.config.lid_flow:
            return out
        # A shut eye's polygon is a line: lids are painted over the cells around it.
        lids = (2 * F.max_pool2d(driving[:, 2:4], 5, 1, 2)).clamp_max(1)
        for index in (2, 3):
            closing = eye * opening_growth(after[:, index], before[:, index])
            out = torch.maximum(out, closing[:, None, None, None] * lids[:, index - 2 : index - 1])
        return out

    def decode(self, source: Source, flow: Flow, contours: Float[Tensor, "B G H W"]) -> Decoded:
        """Warp and blend at three scales, paint, and blend with the warped source picture."""
        fine, middle, coarse = source.features
        occlusion = [resize(flow.occlusion, x.shape[2], x.shape[3]) for x in source.features]
        moved = warp(coarse, flow.grid)
        h = moved * occlusion[2]
        h = self.guide_in(torch.cat((h, resize(contours, h.shape[2], h.shape[3])), 1))
        h = self.bottleneck(h)
        h = self.up_blocks[0](torch.lerp(h, moved, occlusion[2]))
        h = torch.lerp(h, warp(middle, flow.grid), occlusion[1])
        h = torch.cat((h, resize(contours, h.shape[2], h.shape[3])), 1)
        h = self.up_blocks[1](h)
        h = torch.lerp(h, warp(fine, flow.grid), occlusion[0])
        painted = torch.sigmoid(self.last(h))
        frame = torch.lerp(painted, warp(source.image, flow.grid), occlusion[0])
        return Decoded(frame, painted, flow)

    def render(self, source: Source, landmarks: Float[Tensor, "B 478 _"]) -> Float[Tensor, "B 3 R R"]:
        """Draw frames in [0, 1] for driving landmarks; a source of one portrait serves them all."""
        if source.image.shape[0] != landmarks.shape[0]:
            source = source.expand(landmarks.shape[0])
        return self.redraw(source, landmarks).frame.clamp(0, 1)

    def redraw(self, source: Source, landmarks: Float[Tensor, "B 478 _"]) -> Decoded:
        """Predict flow, decode, repaint mouth and eyes, double. There are as many sources as driving landmarks."""
        made = self.decode(source, *self.predict_flow(source, landmarks))
        frame = self.repaint(source, made.frame, landmarks)
        if self.fine:
            size = self.config.image_size_px
            moved = warp(source.full, made.flow.grid, (size, size))
            frame = self.fine(frame, moved, landmarks, source.fine_details)
        return made._replace(frame=frame)

    def repaint(
        self, source: Source, frame: Float[Tensor, "B 3 S S"], landmarks: Float[Tensor, "B 478 _"]
    ) -> Float[Tensor, "B 3 S S"]:
        """Paint mouth and eyes a second time, if the configuration says so; the result is not clamped."""
        return self.detail(frame, landmarks, source.details) if self.detail else frame

    def forward(
        self,
        image: Float[Tensor, "B 3 R R"],
        source_landmarks: Float[Tensor, "B 478 _"],
        driving_landmarks: Float[Tensor, "B 478 _"],
    ) -> Decoded:
        """Run the training pass: one source and one driving face each."""
        return self.redraw(self.encode(image, source_landmarks), driving_landmarks)
