"""Local attention over time: every frame sees ``window`` frames to either side, so cost grows linearly with length.

Shapes: B batch, T frames, D width, d width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

DENSE_LIMIT = 192
"""Up to this many frames one masked block is quicker than several."""
CHUNK_FRAMES = 1024
"""Frames that generation takes at a time, so that memory does not grow with length."""


def rotate(x: Float[Tensor, "B heads T d"], start: int = 0) -> Float[Tensor, "B heads T d"]:
    """Encode positions by rotating the whole head (RoPE: Su et al. 2021).

    Args:
        x: Queries or keys; d is even.
        start: Position of the first frame.
    """
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(start, start + x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def band_mask(
    queries: int, keys: int, offset: int, window: int, device: torch.device
) -> Bool[Tensor, "{queries} {keys}"]:
    """Mark the keys that each query sees: true where |i - j| <= window.

    Query i is frame i, key j is frame j + offset.
    """
    i = torch.arange(queries, device=device)[:, None]
    j = torch.arange(keys, device=device)[None, :] + offset
    return (i - j).abs() <= window


def relative_buckets(offset: Int[Tensor, "*shape"], buckets: int, max_distance: int) -> Int[Tensor, "*shape"]:
    """Sort time offsets into buckets (T5: Raffel et al. 2020).

    Each direction has half of the buckets. The first half of these is exact, the rest logarithmic.

    Args:
        offset: Key frame minus query frame.
        buckets: Number of buckets.
        max_distance: Offsets beyond it share the last bucket.
    """
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    ratio = torch.log(distance.clamp_min(1).double() / exact) / torch.log(torch.tensor(max_distance / exact).double())
    # Exact powers must not fall into the bucket below by rounding.
    far = (exact + torch.floor(ratio * (half - exact) + 1e-9).long()).clamp_max(half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


def chunks(length: int, reach: int, size: int = CHUNK_FRAMES) -> Iterator[tuple[int, int, int, int]]:
    """Cut a clip into pieces.

    Yields (start, stop, low, high): frames [start, stop) are wanted, and their result depends on [low, high).
    """
    for start in range(0, length, size):
        stop = min(start + size, length)
        yield start, stop, max(0, start - reach), min(length, stop + reach)


class Band(NamedTuple):
    """Frames ``start`` to ``stop`` attend to frames ``low`` to ``high`` with an additive bias."""

    start: int
    stop: int
    low: int
    high: int
    bias: Float[Tensor, "1 heads queries keys"]


def relative_bands(
    table: Float[Tensor, "buckets heads"], frames: int, window: int, max_distance: int, block: int
) -> tuple[Band, ...]:
    """Cut a clip into blocks of queries, each with its bias: the table's by offset, and minus infinity outside the window.

    Blocks of one shape share one bias.

    Args:
        table: Learned bias; a float64 table gives float64, any other float32.
        frames: Length of the clip.
        window: Frames seen to either side.
        max_distance: As for ``relative_buckets``.
        block: Queries in a block.
    """
    buckets = table.shape[0]
    table = table if table.dtype == torch.float64 else table.float()
    made: dict[tuple[int, int, int], Tensor] = {}
    bands = []
    for start, stop, low, high in chunks(frames, window, block):
        shape = (stop - start, high - low, low - start)
        if shape not in made:
            rows, keys = (torch.arange(count, device=table.device) for count in shape[:2])
            bucket = relative_buckets(keys + shape[2] - rows[:, None], buckets, max_distance)
            mask = band_mask(*shape, window, table.device)
            made[shape] = table.t()[:, bucket].masked_fill(~mask, float("-inf"))[None]
        bands.append(Band(start, stop, low, high, made[shape]))
    return tuple(bands)


def banded_attention(
    q: Float[Tensor, "B heads T d"],
    k: Float[Tensor, "B heads T d"],
    v: Float[Tensor, "B heads T d"],
    bands: tuple[Band, ...],
) -> Float[Tensor, "B heads T d"]:
    """Attend within bands that cover the clip; the result equals dense attention with bias and mask."""
    out = []
    for start, stop, low, high, bias in bands:
        keys, values = k[:, :, low:high], v[:, :, low:high]
        out.append(F.scaled_dot_product_attention(q[:, :, start:stop], keys, values, attn_mask=bias.to(q.dtype)))
    return out[0] if len(out) == 1 else torch.cat(out, 2)


def local_attention(
    q: Float[Tensor, "B heads T d"],
    k: Float[Tensor, "B heads T d"],
    v: Float[Tensor, "B heads T d"],
    window: int,
    block: int = 128,
    valid: Bool[Tensor, "B T"] | None = None,
) -> Float[Tensor, "B heads T d"]:
    """Attend to near frames only; the result equals dense attention under ``band_mask``.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        window: Frames seen to either side.
        block: Queries taken at a time.
        valid: False for keys that are padding.
    """
    frames = q.shape[2]
    block = frames if frames <= DENSE_LIMIT else block
    out = []
    for start, stop, low, high in chunks(frames, window, block):
        mask = band_mask(stop - start, high - low, low - start, window, q.device)
        if valid is not None:
            mask = mask & valid[:, None, None, low:high]
        keys, values = k[:, :, low:high], v[:, :, low:high]
        out.append(F.scaled_dot_product_attention(q[:, :, start:stop], keys, values, attn_mask=mask))
    return out[0] if len(out) == 1 else torch.cat(out, 2)


class LocalSelfAttention(nn.Module):
    """Multi-head banded self-attention with rotary positions."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "B T D"], valid: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B T D"]:
        """Attend; ``valid`` is false for padding."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = local_attention(rotate(q), rotate(k), v, self.window, valid=valid)
        return self.to_out(h.transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Linear, GELU, dropout, linear."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width))
