"""A2V-FDM as published: a 3-D U-Net that predicts the noise in dense flow and occlusion (paper section 3.3).

    source, mask, condition ──prepare──▶ Conditions (once per clip)
    x, time, Conditions ──forward──▶ noise in x (once per step)

Frames are the batch of 2-D convolutions; time couples frames in temporal attention and in the group norms. Memory beyond the
activations that skips need is bounded by ``frames_per_chunk``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dawn.config import UNetConfig
from dawn.errors import ConfigError
from dawn.models.attention import Band, banded_attention, relative_bands
from dawn.models.paper.a2v_blocks import (
    NORM_EPS,
    GateContext,
    ResBlock,
    SpatialAttention,
    SpatialLinearAttention,
    convolve,
    pointwise,
    wide,
)

ROTARY_BASE = 10_000.0
DENSE_FRAMES = 128
"""Up to this many frames one masked attention is quicker than several banded ones of ``BAND_QUERIES`` frames each."""
BAND_QUERIES = 64
CPU_TOKENS, ACCELERATOR_TOKENS = 4096, 2**18
"""How many tokens temporal attention takes at a time without gradients: on a CPU they should fit its cache."""
STEM_GROUP = 16
"""Constant input channels that the stem adds up at a time."""
FLOW_CHANNELS, OCCLUSION_CHANNELS = 2, 1
MOTION_CHANNELS = FLOW_CHANNELS + OCCLUSION_CHANNELS


class TimePlan(NamedTuple):
    """What all temporal attentions share: bands that cover the clip, and rotations (T, heads x head_size), complex."""

    bands: tuple[Band, ...]
    rotary: Tensor


def time_plan(table: Tensor, frames: int, window: int, max_distance: int, head_size: int) -> TimePlan:
    """table: relative bias (buckets, heads)."""
    bands = relative_bands(table, frames, window, max_distance, frames if frames <= DENSE_FRAMES else BAND_QUERIES)
    frequency = 1 / ROTARY_BASE ** (torch.arange(0, head_size, 2, device=table.device).float() / head_size)
    angle = torch.arange(frames, device=table.device).float()[:, None] * frequency
    angle = angle.to(wide(table).dtype).repeat(1, 2 * table.shape[1])  # queries and keys of all heads
    return TimePlan(bands, torch.polar(torch.ones_like(angle), angle))


class TemporalAttention(nn.Module):
    """Banded attention over time at every pixel, residual. (F, h, w, C) -> the same; without gradients x is overwritten."""

    def __init__(self, channels: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels, NORM_EPS, bias=False)
        self.to_qkv = nn.Linear(channels, 3 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, channels, bias=False)

    def forward(self, x: Tensor, batch: int, plan: TimePlan) -> Tensor:
        tokens = x.unflatten(0, (batch, -1)).flatten(2, 3)  # (B, T, n, C)
        if torch.is_grad_enabled():
            return (tokens + self._attend(tokens, plan)).view_as(x)
        at_once = CPU_TOKENS if x.device.type == "cpu" else ACCELERATOR_TOKENS
        for some in tokens.split(max(1, at_once // len(x)), 2):
            some.add_(self._attend(some, plan))
        return x

    def _attend(self, x: Tensor, plan: TimePlan) -> Tensor:
        """x: (B, T, P, C) -> (B, T, P, C)."""
        batch, frames, pixels, channels = x.shape
        rows = self.norm(x.transpose(1, 2).reshape(batch * pixels, frames, channels))
        qkv = pointwise(rows, self.to_qkv.weight)
        inner = self.to_out.in_features
        # Neighbouring dimensions are a pair that turns: a complex number. Queries and keys turn alike, in one product.
        turned = torch.view_as_complex(wide(qkv[..., : 2 * inner]).unflatten(-1, (inner, 2))) * plan.rotary
        pair = torch.view_as_real(turned).flatten(-2).to(qkv.dtype).unflatten(-1, (2, self.heads, -1))
        query, key = pair.permute(2, 0, 3, 1, 4)
        value = qkv[..., 2 * inner :].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        heads = banded_attention(query, key, value, plan.bands).transpose(1, 2).flatten(2)
        return pointwise(heads, self.to_out.weight).view(batch, pixels, frames, channels).transpose(1, 2)


class Conditions(NamedTuple):
    """All that does not depend on the step. Tensors are float32 (float64 for a float64 network)."""

    stem: Tensor
    """(B, S, S, width): what source and mask add to the stem's output, bias included."""
    blocks: tuple[GateContext, ...]
    """Per conditioned block in the order of execution."""
    plan: TimePlan


class Run(NamedTuple):
    """What one pass hands to every level."""

    batch: int
    cells: int
    """Cells (frames times pixels) of the widest activation to take at a time."""
    time: Tensor
    """(B, time size), after SiLU."""
    contexts: Iterator[GateContext]
    plan: TimePlan

    def step(self, x: Tensor) -> int:
        """Frames at a time, for frames (F, h, w, C)."""
        return max(1, self.cells // (x.shape[1] * x.shape[2]))


def sinusoid(time: Tensor, width: int) -> Tensor:
    """(B,) -> (B, width): all sines, then all cosines, of geometric frequencies from 1 to 1/10000 (ends included)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=time.device) * (-math.log(10_000) / (half - 1)))
    angle = time.float()[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), -1)


class TimeEmbedding(nn.Module):
    """Diffusion time (B,) -> (B, 4 width)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, 4 * width)

    def forward(self, time: Tensor) -> Tensor:
        h = sinusoid(time, self.expand.in_features).to(wide(self.expand.weight).dtype)
        h = F.gelu(F.linear(h, wide(self.expand.weight), wide(self.expand.bias)))
        return F.linear(h, wide(self.project.weight), wide(self.project.bias))


class Level(nn.Module):
    """Two residual blocks, spatial and temporal attention at one resolution, and the layer that leaves it (or None)."""

    def __init__(
        self, config: UNetConfig, in_channels: int, channels: int, resample: nn.Conv2d | nn.ConvTranspose2d | None
    ) -> None:
        super().__init__()
        self.first = conditioned_block(config, in_channels, channels)
        self.second = conditioned_block(config, channels, channels)
        self.spatial = SpatialLinearAttention(channels, config.heads, config.head_size)
        self.temporal = TemporalAttention(channels, config.heads, config.head_size)
        self.resample = resample

    def forward(self, parts: tuple[Tensor, ...], run: Run) -> tuple[Tensor, Tensor]:
        """parts: (F, h, w, C_i) -> (F, h, w, channels), and the same resampled for the next level."""
        step = run.step(parts[0])
        h = self.first(parts, run.batch, step, run.time, next(run.contexts))
        h = self.second((h,), run.batch, step, run.time, next(run.contexts))
        h = self.spatial(h, step)
        h = self.temporal(h, run.batch, run.plan)
        return h, h if self.resample is None else convolve(h, self.resample)


class Middle(nn.Module):
    """The lowest resolution: block, full spatial attention, temporal attention, block."""

    def __init__(self, config: UNetConfig, channels: int) -> None:
        super().__init__()
        self.first = conditioned_block(config, channels, channels)
        self.spatial = SpatialAttention(channels, config.heads, config.head_size)
        self.temporal = TemporalAttention(channels, config.heads, config.head_size)
        self.second = conditioned_block(config, channels, channels)

    def forward(self, x: Tensor, run: Run) -> Tensor:
        step = run.step(x)
        h = self.first((x,), run.batch, step, run.time, next(run.contexts))
        h = self.temporal(self.spatial(h), run.batch, run.plan)
        return self.second((h,), run.batch, step, run.time, next(run.contexts))


class Head(nn.Module):
    """Residual block without conditions, and a projection. Parts (F, S, S, C_i) -> (F, S, S, out)."""

    def __init__(self, config: UNetConfig, out_channels: int) -> None:
        super().__init__()
        self.block = ResBlock(2 * config.width, config.width, config.norm_groups)
        self.out = nn.Linear(config.width, out_channels)

    def forward(self, parts: tuple[Tensor, ...], run: Run) -> Tensor:
        h = self.block(parts, run.batch, run.step(parts[0]))
        return pointwise(h, self.out.weight, self.out.bias)


def conditioned_block(config: UNetConfig, in_channels: int, out_channels: int) -> ResBlock:
    """Residual block that sees diffusion time, audio, pose and eyes."""
    sizes = {"audio": config.audio_size, "pose": config.pose_size, "eye": config.eye_size}
    return ResBlock(
        in_channels,
        out_channels,
        config.norm_groups,
        4 * config.width,
        sizes,
        config.cross_heads,
        config.cross_head_size,
    )


class A2VUNet(nn.Module):
    """Noise in latent motion, all frames at once.

    ``frames_per_chunk`` (not saved): without gradients, spatial work takes this many frames at a time at full resolution and
    more at lower ones; None takes all. The result is the same to rounding: group norms always see the whole clip.

    For bfloat16 use ``.to(torch.bfloat16)`` or autocast; statistics, time embedding and prepared conditions stay float32.
    """

    frames_per_chunk: int | None = None

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        widths = [width * factor for factor in config.multipliers]
        self.stem = nn.Conv2d(
            MOTION_CHANNELS + config.source_size + config.mask_size,
            width,
            config.stem_kernel,
            padding=config.stem_kernel // 2,
        )
        self.stem_attention = TemporalAttention(width, config.heads, config.head_size)
        self.relative_bias = nn.Embedding(config.bias_buckets, config.heads)
        self.time_embedding = TimeEmbedding(width)
        last = len(widths) - 1
        self.down = nn.ModuleList(
            Level(config, ins, outs, nn.Conv2d(outs, outs, 4, 2, 1) if i < last else None)
            for i, (ins, outs) in enumerate(zip([width, *widths[:-1]], widths, strict=True))
        )
        self.middle = Middle(config, widths[-1])
        self.up = nn.ModuleList(
            Level(config, 2 * ins, outs, nn.ConvTranspose2d(outs, outs, 4, 2, 1) if i < last else None)
            for i, (ins, outs) in enumerate(zip(widths[::-1], [*widths[-2::-1], width], strict=True))
        )
        self.flow_head = Head(config, FLOW_CHANNELS)
        self.occlusion_head = Head(config, OCCLUSION_CHANNELS)

    def prepare(self, source: Tensor, mask: Tensor, condition: Tensor) -> Conditions:
        """Everything that stays the same over the steps; differentiable, so in training call it with every pass.

        source: (B, source_size, S, S) source features. mask: (B, mask_size, S, S) encoded face box.
        condition: (B, T, audio + pose + eye) per frame: audio features, pose and blink as differences to the source frame.
        S is a multiple of 2^(levels - 1). Raises ConfigError for other shapes.
        """
        config = self.config
        factor = 2 ** (len(config.multipliers) - 1)
        if source.shape[2] % factor or source.shape[3] % factor:
            raise ConfigError(f"latent side {tuple(source.shape[2:])}: make it a multiple of {factor}")
        size = config.audio_size + config.pose_size + config.eye_size
        if condition.shape[-1] != size:
            raise ConfigError(f"condition has {condition.shape[-1]} numbers a frame, the network expects {size}")
        assert self.stem.bias is not None
        weight, bias = wide(self.stem.weight), wide(self.stem.bias)
        with torch.autocast(source.device.type, enabled=False):
            constant = torch.cat((source, mask), 1).to(weight.dtype)
            # One sum over all channels would be the largest rounding error of the network.
            groups = zip(constant.split(STEM_GROUP, 1), weight[:, MOTION_CHANNELS:].split(STEM_GROUP, 1), strict=True)
            shares = [F.conv2d(*group, padding=self.stem.padding) for group in groups]
            stem = torch.stack(shares).sum(0) + bias[:, None, None]
            blocks = self._contexts(condition.flatten(0, 1).to(weight.dtype))
            plan = time_plan(
                self.relative_bias.weight,
                condition.shape[1],
                config.window_frames,
                config.bias_max_distance,
                config.head_size,
            )
        return Conditions(stem.permute(0, 2, 3, 1).contiguous(), blocks, plan)

    def nulled(self, conditions: Conditions) -> Conditions:
        """The same clip with audio, pose and eye vectors at zero: the unconditional branch of classifier-free guidance."""
        config = self.config
        frames = len(conditions.blocks[0].keys)
        zero = conditions.stem.new_zeros((1, config.audio_size + config.pose_size + config.eye_size))
        with torch.autocast(zero.device.type, enabled=False):
            blocks = self._contexts(zero)
        return conditions._replace(
            blocks=tuple(
                one._replace(
                    keys=one.keys.expand(frames, -1, -1),
                    values=one.values.expand(frames, -1, -1),
                    spread=one.spread.expand(frames, -1, -1),
                )
                for one in blocks
            )
        )

    def _contexts(self, condition: Tensor) -> tuple[GateContext, ...]:
        """condition: (F, D)."""
        config = self.config
        sizes = (config.audio_size, config.pose_size, config.eye_size)
        parts = dict(zip(("audio", "pose", "eye"), F.silu(condition).split(sizes, -1), strict=True))
        levels = [*self.down, self.middle, *self.up]
        return tuple(block.prepare(parts) for level in levels for block in (level.first, level.second))

    def forward(self, x: Tensor, time: Tensor, conditions: Conditions) -> Tensor:
        """Predicted noise. x: (B, 3, T, S, S) noisy flow (x, y) and occlusion in [-1, 1]; time: (B,) in steps. -> like x."""
        batch, _, frames, height, width = x.shape
        with torch.autocast(x.device.type, enabled=False):
            embedded = F.silu(self.time_embedding(time))
        chunk = self.frames_per_chunk if self.frames_per_chunk and not torch.is_grad_enabled() else batch * frames
        run = Run(batch, chunk * height * width, embedded, iter(conditions.blocks), conditions.plan)

        stem = self._stem(x, conditions.stem)
        h = self.stem_attention(stem if torch.is_grad_enabled() else stem.clone(), batch, run.plan)
        skips = []
        for level in self.down:
            skip, h = level((h,), run)
            skips.append(skip)
        del skip
        h = self.middle(h, run)
        for level in self.up:
            h = level((h, skips.pop()), run)[1]
        out = torch.cat([head((h, stem), run) for head in (self.flow_head, self.occlusion_head)], -1)
        return out.unflatten(0, (batch, frames)).permute(0, 4, 1, 2, 3).contiguous().to(x.dtype)

    def _stem(self, x: Tensor, constant: Tensor) -> Tensor:
        """(B, 3, T, S, S) -> (B T, S, S, width): the convolution of the changing channels, plus the constant ones' share."""
        dtype = self.stem.weight.dtype
        pictures = x.transpose(1, 2).flatten(0, 1).to(dtype).contiguous(memory_format=torch.channels_last)
        h = F.conv2d(pictures, self.stem.weight[:, :MOTION_CHANNELS], padding=self.stem.padding)
        h = h.permute(0, 2, 3, 1).contiguous().unflatten(0, (len(x), -1))
        share = constant[:, None].to(h.dtype)
        return (h + share if torch.is_grad_enabled() else h.add_(share)).flatten(0, 1)
