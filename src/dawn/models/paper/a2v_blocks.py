"""Per-frame blocks of the published 3-D U-Net (paper section 3.3), in one layout: frames (F, h, w, C), F = batch x time.

A convolution sees such a tensor as channels-last pictures, attention sees its tokens (F, h w, C). Both are views, so nothing
is transposed between blocks. Without gradients, frames are taken in steps of ``step``, and results overwrite what is no
longer needed. With gradients, all frames are taken together and nothing is overwritten.

Shapes: C channels in, O channels out, N conditions, H heads of D numbers, I = H D.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

NORM_EPS = 1e-5
LOGIT_SCALE = 8.0
"""Sharpness of the cosine cross-attention."""


def widen(x: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Widen to at least float32, in which statistics and softmax arguments are computed."""
    return x.float() if x.element_size() < 4 else x


def pointwise(
    x: Float[Tensor, "*batch C"], weight: Float[Tensor, "O C"], bias: Float[Tensor, " O"] | None = None
) -> Float[Tensor, "*batch O"]:
    """Apply a linear layer over the last axis.

    In float32 on a CPU it runs as a 1x1 convolution, for which oneDNN is quicker than BLAS.
    """
    weight, bias = weight.to(x.dtype), None if bias is None else bias.to(x.dtype)
    if x.device.type != "cpu" or x.element_size() < 4:
        return F.linear(x, weight, bias)
    picture = x.reshape(1, -1, 1, x.shape[-1]).permute(0, 3, 1, 2)
    return F.conv2d(picture, weight[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(*x.shape[:-1], -1)


def convolve(x: Float[Tensor, "F h w C"], layer: nn.Module) -> Float[Tensor, "F h2 w2 O"]:
    """Apply a 2-D convolution, ordinary or transposed, to frames."""
    return layer(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()


def take(parts: tuple[Float[Tensor, "F h w _"], ...], frames: slice) -> Float[Tensor, "f h w C"]:
    """Take some frames of tensors that count as one, joined in channels."""
    return parts[0][frames] if len(parts) == 1 else torch.cat([part[frames] for part in parts], -1)


def map_frames(
    work: Callable[[slice], Tensor], frames: int, step: int, out: Float[Tensor, "F h w C"] | None = None
) -> Float[Tensor, "F h w C2"]:
    """Call ``work`` with ``step`` frames at a time and gather its results in ``out``, which is made if not given."""
    if step >= frames:
        return work(slice(0, frames))
    for start in range(0, frames, step):
        part = work(slice(start, min(start + step, frames)))
        if out is None:
            out = part.new_empty((frames, *part.shape[1:]))
        out[start : start + len(part)] = part
        del part  # or it would live beside its successor
    assert out is not None
    return out


class Moments(NamedTuple):
    """Mean and sum of squared deviations from it, per frame and channel."""

    mean: Float[Tensor, "F C"]
    squares: Float[Tensor, "F C"]

    @staticmethod
    def of(x: Float[Tensor, "F h w C"]) -> Moments:
        """Measure frames."""
        tokens = widen(x.flatten(1, 2))
        mean = tokens.mean(1)
        deviation = tokens - mean[:, None]
        return Moments(mean, (deviation.square() if torch.is_grad_enabled() else deviation.square_()).sum(1))


def norm_affine(
    norm: nn.GroupNorm,
    parts: list[Moments],
    cells: int,
    batch: int,
    modulation: Float[Tensor, "B gain_and_offset"] | None,
) -> tuple[Float[Tensor, "F 1 1 C"], Float[Tensor, "F 1 1 C"]]:
    """Express group norm over (C / groups, T, h, w) as a factor and a term.

    The groups' variance comes from the frames' moments without cancellation (Chan, Golub and LeVeque 1983).

    Args:
        norm: The layer.
        parts: Moments of all frames in order.
        cells: h w.
        batch: Clips among the frames.
        modulation: A gain, less one, and an offset after the norm.
    """
    mean, squares = (
        torch.cat(columns).unflatten(1, (norm.num_groups, -1)).unflatten(0, (batch, -1))
        for columns in zip(*parts, strict=True)
    )  # (B, T, groups, C / groups)
    centre = mean.mean((1, 3))
    variance = (squares / cells + (mean - centre[:, None, :, None]).square()).mean((1, 3))
    weight, bias = widen(norm.weight), widen(norm.bias)
    factor = (variance + norm.eps).rsqrt()[..., None] * weight.unflatten(0, (norm.num_groups, -1))
    term = bias - (centre[..., None] * factor).flatten(1)
    factor = factor.flatten(1)
    if modulation is not None:
        gain, offset = modulation.chunk(2, -1)
        factor, term = factor * (gain + 1), term * (gain + 1) + offset
    frames = mean.shape[1]
    return factor.repeat_interleave(frames, 0)[:, None, None], term.repeat_interleave(frames, 0)[:, None, None]


def activate(
    x: Float[Tensor, "F h w C"], factor: Float[Tensor, "F 1 1 C"], term: Float[Tensor, "F 1 1 C"]
) -> Float[Tensor, "F h w C"]:
    """Compute SiLU(x factor + term) in at least float32."""
    return F.silu(torch.addcmul(term, widen(x), factor), inplace=not torch.is_grad_enabled()).to(x.dtype)


class GateContext(NamedTuple):
    """What a block's cross-attentions keep over all steps."""

    query: Float[Tensor, "N*I C"]
    """Query weights with the norm's gain and mean folded in."""
    keys: Float[Tensor, "F N*H D"]
    """Scaled difference between the frame's key and the null key."""
    values: Float[Tensor, "F N*H D"]
    """The frame's value minus the null value."""
    spread: Float[Tensor, "F N*(1+H) N*k"]
    """Block-diagonal; gates times it have the length of the centred output before its norm."""
    out: Float[Tensor, "N*H D O"]
    """Output weights with the output norm's gain and mean folded in."""
    base: Float[Tensor, "N O"]
    """The null values' output, folded likewise."""


class ConditionGate(nn.Module):
    """Cross-attention from pixels to one context token per frame and one learned null token.

    Softmax over two keys is a gate: v_null + sigmoid(l_context - l_null) (v_context - v_null). So almost everything is
    computed once per frame instead of once per pixel and step.
    """

    def __init__(self, size: int, in_channels: int, out_channels: int, heads: int, head_size: int) -> None:
        """Build the gate; ``size`` is that of the condition per frame."""
        super().__init__()
        inner = heads * head_size
        self.heads = heads
        self.context = nn.Linear(size, 2 * out_channels)
        self.norm = nn.LayerNorm(in_channels, NORM_EPS, bias=False)
        self.to_query = nn.Linear(in_channels, inner, bias=False)
        self.to_key_value = nn.Linear(2 * out_channels, 2 * inner, bias=False)
        self.null_key_value = nn.Parameter(torch.randn(2, head_size))
        self.query_scale = nn.Parameter(torch.ones(head_size))
        self.key_scale = nn.Parameter(torch.ones(head_size))
        self.to_out = nn.Linear(inner, out_channels, bias=False)
        self.out_norm = nn.LayerNorm(out_channels, NORM_EPS, bias=False)

    def fold(self, condition: Float[Tensor, "F size"]) -> GateContext:
        """Compute the gate's context (N = 1) from its condition after SiLU. The result's ``spread`` is (F, 1 + H, k).

        Queries are normalised to unit length, so of the first layer norm only gain and mean matter. The last one needs the
        length of its centred input. ``spread`` is that input as a function of the gates. Without gradients it is reduced
        to its triangular factor (k = 1 + H instead of O).
        """
        context = F.linear(condition, widen(self.context.weight), widen(self.context.bias))
        pair = F.linear(context, widen(self.to_key_value.weight)).unflatten(-1, (2, self.heads, -1))
        null_key, null_value = widen(self.null_key_value)
        sharpness = LOGIT_SCALE * widen(self.query_scale) * widen(self.key_scale)
        keys = (F.normalize(pair[:, 0], dim=-1) - F.normalize(null_key, dim=-1)) * sharpness
        values = pair[:, 1] - null_value

        query = widen(self.to_query.weight) * widen(self.norm.weight)
        out = widen(self.to_out.weight)
        out = (out - out.mean(0)).t().unflatten(0, (self.heads, -1))
        base = (null_value @ out).sum(0)
        spread = torch.einsum("fhd,hdo->fho", values, out)
        spread = torch.cat((base.expand(len(spread), 1, -1), spread), 1)
        if not torch.is_grad_enabled():
            spread = torch.linalg.qr(spread.mT, mode="r").R.mT
        gain = widen(self.out_norm.weight)
        return GateContext(query - query.mean(1, keepdim=True), keys, values, spread, out * gain, base * gain)


def gate_context(gates: list[ConditionGate], conditions: list[Float[Tensor, "F _"]]) -> GateContext:
    """Join the gates of one block; conditions are after SiLU, one a gate."""
    folded = [gate.fold(condition) for gate, condition in zip(gates, conditions, strict=True)]
    rows, columns = folded[0].spread.shape[1:]
    count = len(folded)
    spread = folded[0].spread.new_zeros((len(conditions[0]), count, rows, count, columns))
    for i, one in enumerate(folded):
        spread[:, i, :, i] = one.spread
    query, keys, values, out = (
        torch.cat(parts, axis)
        for parts, axis in (
            ([one.query for one in folded], 0),
            ([one.keys for one in folded], 1),
            ([one.values for one in folded], 1),
            ([one.out for one in folded], 0),
        )
    )
    return GateContext(
        query, keys, values, spread.flatten(3).flatten(1, 2), out, torch.stack([one.base for one in folded])
    )


def add_gated(
    y: Float[Tensor, "f n O"], x: Float[Tensor, "f n C"], context: GateContext, frames: slice
) -> Float[Tensor, "f n O"]:
    """Add a block's cross-attentions from its input x to y; y is overwritten where no gradient needs it.

    Both hold the clip's frames ``frames``.
    """
    count = len(context.base)
    heads, size = context.out.shape[:2]
    query = pointwise(x, context.query)
    one_head = torch.eye(heads, dtype=x.dtype, device=x.device).repeat_interleave(
        size, 1
    )  # sums over a head's dimensions
    length = widen(pointwise(query * query, one_head))
    # Queries times keys, as the input times (query weights times keys): per frame instead of per pixel.
    keys = torch.bmm(context.keys[frames].transpose(0, 1), context.query.unflatten(0, (heads, size))).permute(1, 2, 0)
    logit = widen(torch.bmm(x, keys.to(x.dtype))) * length.clamp_min(torch.finfo(length.dtype).tiny).rsqrt()
    gates = F.pad(logit.sigmoid().unflatten(-1, (count, -1)), (1, 0), value=1.0)  # (f, n, N, 1 + H)
    with torch.autocast(x.device.type, enabled=False):
        spread = torch.bmm(gates.flatten(2), context.spread[frames]).unflatten(-1, (count, -1))
    variance = spread.square().sum(-1, keepdim=True) / y.shape[-1]
    gates = (gates * (variance + NORM_EPS).rsqrt()).flatten(2)
    rows = torch.bmm(context.values[frames].transpose(0, 1), context.out).unflatten(0, (count, -1))  # (N, H, f, O)
    base = context.base[:, None, None].expand(-1, 1, rows.shape[2], -1)
    values = torch.cat((base, rows), 1).flatten(0, 1).transpose(0, 1)  # (f, N (1 + H), O)
    add = torch.baddbmm if torch.is_grad_enabled() else Tensor.baddbmm_
    return add(y, gates.to(y.dtype), values.to(y.dtype))


class ResBlock(nn.Module):
    """Convolution, group norm, SiLU, twice, and a shortcut; conditions and time enter after the first norm."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        groups: int,
        time_size: int = 0,
        condition_sizes: dict[str, int] | None = None,
        heads: int = 8,
        head_size: int = 8,
    ) -> None:
        """Build the block.

        Args:
            in_channels: Channels of all inputs together.
            out_channels: Channels of the result.
            groups: Groups of the norms.
            time_size: Size of the embedded time; 0 for a block without time.
            condition_sizes: Size of each condition per frame; None for a block without conditions.
            heads: Heads of the cross-attentions.
            head_size: Size of each head.
        """
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm1 = nn.GroupNorm(groups, out_channels, NORM_EPS)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.norm2 = nn.GroupNorm(groups, out_channels, NORM_EPS)
        self.shortcut = nn.Linear(in_channels, out_channels) if in_channels != out_channels else None
        self.time = nn.Linear(time_size, 2 * out_channels) if time_size else None
        self.conditions = nn.ModuleDict(
            {
                name: ConditionGate(size, in_channels, out_channels, heads, head_size)
                for name, size in (condition_sizes or {}).items()
            }
        )

    def prepare(self, conditions: dict[str, Float[Tensor, "F _"]]) -> GateContext:
        """Compute what does not depend on the step. Conditions are by name, after SiLU, float32."""
        gates = [gate for gate in self.conditions.values() if isinstance(gate, ConditionGate)]
        return gate_context(gates, [conditions[name] for name in self.conditions])

    def forward(
        self,
        parts: tuple[Float[Tensor, "F h w _"], ...],
        batch: int,
        step: int,
        time: Float[Tensor, "B time_size"] | None = None,
        context: GateContext | None = None,
    ) -> Float[Tensor, "F h w O"]:
        """Run the block.

        Args:
            parts: Inputs that count as one, joined in channels.
            batch: Clips among the frames.
            step: Frames to take at a time.
            time: Embedded time, after SiLU.
            context: From ``prepare``.
        """
        frames, height, width = parts[0].shape[:3]
        if step >= frames and len(parts) > 1:
            parts = (torch.cat(parts, -1),)
        modulation = None
        if self.time is not None:
            assert time is not None
            modulation = F.linear(time, widen(self.time.weight), widen(self.time.bias))
        before: list[Moments] = []
        after: list[Moments] = []

        def first(some: slice) -> Tensor:
            y = convolve(take(parts, some), self.conv1)
            before.append(Moments.of(y))
            return y

        def second(some: slice) -> Tensor:
            y = activate(hidden[some], factor[some], term[some])
            if context is not None:
                y = add_gated(y.flatten(1, 2), take(parts, some).flatten(1, 2), context, some).view_as(y)
            y = convolve(y, self.conv2)
            after.append(Moments.of(y))
            return y

        def last(some: slice) -> Tensor:
            y = activate(hidden[some], factor[some], term[some])
            x = take(parts, some)
            return y.add_(x if self.shortcut is None else pointwise(x, self.shortcut.weight, self.shortcut.bias))

        hidden = map_frames(first, frames, step)
        factor, term = norm_affine(self.norm1, before, height * width, batch, modulation)
        hidden = map_frames(second, frames, step, out=hidden)
        factor, term = norm_affine(self.norm2, after, height * width, batch, None)
        return map_frames(last, frames, step, out=hidden)


class SpatialLinearAttention(nn.Module):
    """Linear attention over the pixels of each frame (Shen et al. 2021), residual.

    softmax(q) (softmax(k)^T v) W_out is softmax(q) times one small matrix per frame.
    """

    def __init__(self, channels: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads, self.head_size = heads, head_size
        self.norm = nn.LayerNorm(channels, NORM_EPS, bias=False)
        self.to_qkv = nn.Linear(channels, 3 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, channels)

    def forward(self, x: Float[Tensor, "F h w C"], step: int) -> Float[Tensor, "F h w C"]:
        """Attend, ``step`` frames at a time; without gradients x is overwritten."""
        if torch.is_grad_enabled():
            return torch.baddbmm(x.flatten(1, 2), *self._factors(x)).view_as(x)
        for start in range(0, len(x), step):
            part = x[start : start + step]
            part.flatten(1, 2).baddbmm_(*self._factors(part))
        return x

    def _factors(self, x: Float[Tensor, "F h w C"]) -> tuple[Float[Tensor, "F n I"], Float[Tensor, "F I C"]]:
        """Return queries, and the matrix that takes them to the output."""
        tokens = self.norm(x.flatten(1, 2))
        query, key, value = (pointwise(tokens, weight) for weight in self.to_qkv.weight.chunk(3))
        query = query.unflatten(-1, (self.heads, -1)).softmax(-1).flatten(2)
        key = key.softmax(1)
        out = self.to_out.weight.t().unflatten(0, (self.heads, -1)).to(key.dtype) * self.head_size**-0.5
        rows = []
        for head in range(self.heads):
            some = slice(head * self.head_size, (head + 1) * self.head_size)
            rows.append(torch.matmul(torch.bmm(key[..., some].transpose(1, 2), value[..., some]), out[head]))
        # A head's query sums to one, so the bias may ride on the rows of any one head.
        rows[0] = rows[0] + self.to_out.bias
        return query.to(x.dtype), torch.cat(rows, 1).to(x.dtype)


class SpatialAttention(nn.Module):
    """Full attention over the pixels of each frame, residual, no positions."""

    def __init__(self, channels: int, heads: int, head_size: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(channels, NORM_EPS, bias=False)
        self.to_qkv = nn.Linear(channels, 3 * heads * head_size, bias=False)
        self.to_out = nn.Linear(heads * head_size, channels, bias=False)

    def forward(self, x: Float[Tensor, "F h w C"]) -> Float[Tensor, "F h w C"]:
        """Attend."""
        qkv = pointwise(self.norm(x.flatten(1, 2)), self.to_qkv.weight)
        q, k, v = qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + pointwise(h, self.to_out.weight).view_as(x)
