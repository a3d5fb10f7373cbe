"""A2V-FDM as published: a 3-D U-Net that predicts the noise in dense flow and occlusion (paper section 3.3).

    source, mask, condition ──prepare──▶ Conditions (once per clip)
    x, time, Conditions ──forward──▶ noise in x (once per step)

Frames are the batch of 2-D convolutions; time couples frames in temporal attention and in the group norms. Memory beyond the
activations that skips need is bounded by ``frames_per_chunk``.

Shapes: B batch, T frames of a clip, F = B T, S side of the latent, h and w at a level, C channels, P pixels.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Complex, Float, Shaped
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
    widen,
)

ROTARY_BASE = 10_000.0
DENSE_FRAMES = 128
"""Up to this many frames one masked attention is quicker than several banded ones of ``BAND_QUERIES`` frames each."""
BAND_QUERIES = 64
CPU_TOKENS, ACCELERATOR_TOKENS = 4096, 2**18
"""Tokens that temporal attention takes at a time without gradients; on a CPU they should fit its cache."""
STEM_GROUP = 16
"""Constant input channels that the stem sums together."""
FLOW_CHANNELS, OCCLUSION_CHANNELS = 2, 1
MOTION_CHANNELS = FLOW_CHANNELS + OCCLUSION_CHANNELS


class TimePlan(NamedTuple):
    """What all temporal attentions share."""

    bands: tuple[Band, ...]
    """They cover the clip."""
    rotary: Complex[Tensor, "T inner"]
    """Rotations of queries and keys of all heads."""


def time_plan(
    table: Float[Tensor, "buckets heads"], frames: int, window: int, max_distance: int, head_size: int
) -> TimePlan:
    """Prepare temporal attention for a clip of ``frames``, from the table of relative biases."""
    bands = relative_bands(table, frames, window, max_distance, frames if frames <= DENSE_FRAMES else BAND_QUERIES)
    frequency = 1 / ROTARY_BASE ** (torch.arange(0, head_size, 2, device=table.device).float() / head_size)
    angle = torch.arange(frames, device=table.device).float()[:, None] * frequency
    angle = angle.to(widen(table).dtype).repeat(1, 2 * table.shape[1])  # queries and keys of all heads
    return TimePlan(bands, torch.polar(torch.ones_like(angle), angle))


class TemporalAttention(nn.Module):
    """Banded attention over time at every pixel, residual."""

    def __init__(self, channels: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels, NORM_EPS, bias=False)
        self.to_qkv = nn.Linear(channels, 3 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, channels, bias=False)

    def forward(self, x: Float[Tensor, "F h w C"], batch: int, plan: TimePlan) -> Float[Tensor, "F h w C"]:
        """Attend; without gradients x is overwritten."""
        tokens = x.unflatten(0, (batch, -1)).flatten(2, 3)  # (B, T, n, C)
        if torch.is_grad_enabled():
            return (tokens + self._attend(tokens, plan)).view_as(x)
        at_once = CPU_TOKENS if x.device.type == "cpu" else ACCELERATOR_TOKENS
        for some in tokens.split(max(1, at_once // len(x)), 2):
            some.add_(self._attend(some, plan))
        return x

    def _attend(self, x: Float[Tensor, "B T P C"], plan: TimePlan) -> Float[Tensor, "B T P C"]:
        batch, frames, pixels, channels = x.shape
        rows = self.norm(x.transpose(1, 2).reshape(batch * pixels, frames, channels))
        qkv = pointwise(rows, self.to_qkv.weight)
        inner = self.to_out.in_features
        # Neighbouring dimensions are a pair that turns: a complex number. Queries and keys turn alike, in one product.
        turned = torch.view_as_complex(widen(qkv[..., : 2 * inner]).unflatten(-1, (inner, 2))) * plan.rotary
        pair = torch.view_as_real(turned).flatten(-2).to(qkv.dtype).unflatten(-1, (2, self.heads, -1))
        query, key = pair.permute(2, 0, 3, 1, 4)
        value = qkv[..., 2 * inner :].unflatten(-1, (self.heads, -1)).transpose(1, 2)
        heads = banded_attention(query, key, value, plan.bands).transpose(1, 2).flatten(2)
        return pointwise(heads, self.to_out.weight).view(batch, pixels, frames, channels).transpose(1, 2)


class Conditions(NamedTuple):
    """Everything that does not depend on the step. Tensors are float32 (float64 for a float64 network)."""

    stem: Float[Tensor, "B S S width"]
    """What source and mask add to the stem's output, bias included."""
    blocks: tuple[GateContext, ...]
    """Per conditioned block in the order of execution."""
    plan: TimePlan


class Run(NamedTuple):
    """What one pass gives to every level."""

    batch: int
    cells: int
    """Cells (frames times pixels) of the widest activation to take at a time."""
    time: Float[Tensor, "B time_size"]
    """Embedded time, after SiLU."""
    contexts: Iterator[GateContext]
    plan: TimePlan

    def step(self, x: Float[Tensor, "F h w C"]) -> int:
        """Return how many such frames to take at a time."""
        return max(1, self.cells // (x.shape[1] * x.shape[2]))


def sinusoid(time: Shaped[Tensor, " B"], width: int) -> Float[Tensor, "B {width}"]:
    """Embed time: all sines, then all cosines, of geometric frequencies from 1 to 1/10000 (ends included)."""
    half = width // 2
    frequency = torch.exp(torch.arange(half, device=time.device) * (-math.log(10_000) / (half - 1)))
    angle = time.float()[:, None] * frequency
    return torch.cat((angle.sin(), angle.cos()), -1)


class TimeEmbedding(nn.Module):
    """Embeds diffusion time in 4 times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.expand = nn.Linear(width, 4 * width)
        self.project = nn.Linear(4 * width, 4 * width)

    def forward(self, time: Shaped[Tensor, " B"]) -> Float[Tensor, "B time_size"]:
        """Embed times, in steps."""
        h = sinusoid(time, self.expand.in_features).to(widen(self.expand.weight).dtype)
        h = F.gelu(F.linear(h, widen(self.expand.weight), widen(self.expand.bias)))
        return F.linear(h, widen(self.project.weight), widen(self.project.bias))


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

    def forward(
        self, parts: tuple[Float[Tensor, "F h w _"], ...], run: Run
    ) -> tuple[Float[Tensor, "F h w C"], Float[Tensor, "F h2 w2 C"]]:
        """Return the level's result, and the same resampled for the next level; parts count as one in channels."""
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

    def forward(self, x: Float[Tensor, "F h w C"], run: Run) -> Float[Tensor, "F h w C"]:
        """Run the level."""
        step = run.step(x)
        h = self.first((x,), run.batch, step, run.time, next(run.contexts))
        h = self.temporal(self.spatial(h), run.batch, run.plan)
        return self.second((h,), run.batch, step, run.time, next(run.contexts))


class Head(nn.Module):
    """Residual block without conditions, and a projection."""

    def __init__(self, config: UNetConfig, out_channels: int) -> None:
        super().__init__()
        self.block = ResBlock(2 * config.width, config.width, config.norm_groups)
        self.out = nn.Linear(config.width, out_channels)

    def forward(self, parts: tuple[Float[Tensor, "F S S _"], ...], run: Run) -> Float[Tensor, "F S S C"]:
        """Run the head; parts count as one in channels."""
        h = self.block(parts, run.batch, run.step(parts[0]))
        return pointwise(h, self.out.weight, self.out.bias)


def conditioned_block(config: UNetConfig, in_channels: int, out_channels: int) -> ResBlock:
    """Build a residual block that sees diffusion time, audio, pose and eyes."""
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
    """Predicts the noise in latent motion, all frames at once.

    ``frames_per_chunk`` (not saved) bounds spatial work without gradients: this many frames at a time at full resolution,
    more at lower ones. None takes all. The result is the same to rounding, as group norms always see the whole clip.

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

    def prepare(
        self,
        source: Float[Tensor, "B source_size H W"],
        mask: Float[Tensor, "B mask_size H W"],
        condition: Float[Tensor, "B T D"],
    ) -> Conditions:
        """Compute everything that stays the same over the steps. It is differentiable: training calls it in every pass.

        Args:
            source: Source features, of a side S that is a multiple of 2^(levels - 1).
            mask: Encoded face box.
            condition: Audio features of every frame, and changes of pose and blink against the source frame.

        Raises:
            ConfigError: S or D do not fit the network.
        """
        config = self.config
        factor = 2 ** (len(config.multipliers) - 1)
        if source.shape[2] % factor or source.shape[3] % factor:
            raise ConfigError(f"latent side {tuple(source.shape[2:])}: make it a multiple of {factor}")
        size = config.audio_size + config.pose_size + config.eye_size
        if condition.shape[-1] != size:
            raise ConfigError(f"condition has {condition.shape[-1]} numbers a frame, the network expects {size}")
        assert self.stem.bias is not None
        weight, bias = widen(self.stem.weight), widen(self.stem.bias)
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

    def without_condition(self, conditions: Conditions) -> Conditions:
        """Set audio, pose and eye vectors to zero: the unconditional branch of classifier-free guidance."""
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

    def _contexts(self, condition: Float[Tensor, "F D"]) -> tuple[GateContext, ...]:
        config = self.config
        sizes = (config.audio_size, config.pose_size, config.eye_size)
        parts = dict(zip(("audio", "pose", "eye"), F.silu(condition).split(sizes, -1), strict=True))
        levels = [*self.down, self.middle, *self.up]
        return tuple(block.prepare(parts) for level in levels for block in (level.first, level.second))

    def forward(
        self, x: Float[Tensor, "B 3 T S S"], time: Shaped[Tensor, " B"], conditions: Conditions
    ) -> Float[Tensor, "B 3 T S S"]:
        """Predict the noise.

        Args:
            x: Noisy flow (x, y) and occlusion, in [-1, 1].
            time: In steps.
            conditions: From ``prepare``.
        """
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

    def _stem(
        self, x: Float[Tensor, "B 3 T S S"], constant: Float[Tensor, "B S S width"]
    ) -> Float[Tensor, "B*T S S width"]:
        """Convolve the changing channels, and add the constant ones' share."""
        dtype = self.stem.weight.dtype
        pictures = x.transpose(1, 2).flatten(0, 1).to(dtype).contiguous(memory_format=torch.channels_last)
        h = F.conv2d(pictures, self.stem.weight[:, :MOTION_CHANNELS], padding=self.stem.padding)
        h = h.permute(0, 2, 3, 1).contiguous().unflatten(0, (len(x), -1))
        share = constant[:, None].to(h.dtype)
        return (h + share if torch.is_grad_enabled() else h.add_(share)).flatten(0, 1)
