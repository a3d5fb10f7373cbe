"""Local attention over time: every frame sees ``window`` frames to either side, so cost grows linearly with length."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DENSE_LIMIT = 192
"""Up to this many frames one masked block is quicker than several."""


def rotary(x: Tensor, start: int = 0) -> Tensor:
    """Rotary position encoding over the whole head (Su et al. 2021). x: (B, heads, T, d), d even."""
    half = x.shape[-1] // 2
    frequency = 10_000.0 ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(start, start + x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., :half], x[..., half:]
    return torch.cat((a * cos - b * sin, a * sin + b * cos), -1)


def band_mask(queries: int, keys: int, offset: int, window: int, device: torch.device) -> Tensor:
    """(queries, keys) bool, true where |i - j| <= window; query i is frame i, key j is frame j + offset."""
    i = torch.arange(queries, device=device)[:, None]
    j = torch.arange(keys, device=device)[None, :] + offset
    return (i - j).abs() <= window


def relative_buckets(offset: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Bucket of key frame less query frame (T5: Raffel et al. 2020): half of them for each direction, of these the first
    half exact, the rest logarithmic up to ``max_distance``."""
    half = buckets // 2
    exact = half // 2
    distance = offset.abs()
    ratio = torch.log(distance.clamp_min(1).double() / exact) / torch.log(torch.tensor(max_distance / exact).double())
    # Exact powers must not fall into the bucket below by rounding.
    far = (exact + torch.floor(ratio * (half - exact) + 1e-9).long()).clamp_max(half - 1)
    return torch.where(distance < exact, distance, far) + half * (offset > 0)


def spans(frames: int, window: int, block: int) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, low, high): frames [start, stop), a block of queries, see keys of [low, high)."""
    for start in range(0, frames, block):
        stop = min(start + block, frames)
        yield start, stop, max(0, start - window), min(frames, stop + window)


class Band(NamedTuple):
    """Frames ``start`` to ``stop`` attend to frames ``low`` to ``high`` with an additive bias (1, heads, queries, keys)."""

    start: int
    stop: int
    low: int
    high: int
    bias: Tensor


def relative_bands(table: Tensor, frames: int, window: int, max_distance: int, block: int) -> tuple[Band, ...]:
    """A clip cut into blocks of queries, with the bias of a table (buckets, heads) by offset and the window's mask.

    Blocks of one shape share one bias. A float64 table gives float64, any other float32.
    """
    buckets = table.shape[0]
    table = table if table.dtype == torch.float64 else table.float()
    made: dict[tuple[int, int, int], Tensor] = {}
    bands = []
    for start, stop, low, high in spans(frames, window, block):
        shape = (stop - start, high - low, low - start)
        if shape not in made:
            rows, keys = (torch.arange(count, device=table.device) for count in shape[:2])
            bucket = relative_buckets(keys + shape[2] - rows[:, None], buckets, max_distance)
            mask = band_mask(*shape, window, table.device)
            made[shape] = table.t()[:, bucket].masked_fill(~mask, float("-inf"))[None]
        bands.append(Band(start, stop, low, high, made[shape]))
    return tuple(bands)


def banded_attention(q: Tensor, k: Tensor, v: Tensor, bands: tuple[Band, ...]) -> Tensor:
    """Attention within bands that cover the clip: equal to dense attention with bias and mask. q, k, v: (B, heads, T, d)."""
    out = []
    for start, stop, low, high, bias in bands:
        keys, values = k[:, :, low:high], v[:, :, low:high]
        out.append(F.scaled_dot_product_attention(q[:, :, start:stop], keys, values, attn_mask=bias.to(q.dtype)))
    return out[0] if len(out) == 1 else torch.cat(out, 2)


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, window: int, block: int = 128, valid: Tensor | None = None
) -> Tensor:
    """Banded attention in blocks of queries, equal to dense attention under ``band_mask``.

    q, k, v: (B, heads, T, d). valid: (B, T) bool, false for keys that are padding.
    """
    frames = q.shape[2]
    block = frames if frames <= DENSE_LIMIT else block
    out = []
    for start, stop, low, high in spans(frames, window, block):
        mask = band_mask(stop - start, high - low, low - start, window, q.device)
        if valid is not None:
            mask = mask & valid[:, None, None, low:high]
        keys, values = k[:, :, low:high], v[:, :, low:high]
        out.append(F.scaled_dot_product_attention(q[:, :, start:stop], keys, values, attn_mask=mask))
    return out[0] if len(out) == 1 else torch.cat(out, 2)


class LocalSelfAttention(nn.Module):
    """Multi-head banded self-attention with rotary positions. (B, T, D) -> (B, T, D)."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        h = local_attention(rotary(q), rotary(k), v, self.window, valid=valid)
        return self.to_out(h.transpose(1, 2).flatten(2))


class FeedForward(nn.Sequential):
    """Linear, GELU, dropout, linear."""

    def __init__(self, width: int, inner: int, dropout: float) -> None:
        super().__init__(nn.Linear(width, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, width))


CHUNK_FRAMES = 1024


def chunks(length: int, reach: int, size: int = CHUNK_FRAMES) -> Iterator[tuple[int, int, int, int]]:
    """(start, stop, low, high): frames [start, stop) are wanted and need [low, high) as context."""
    for start in range(0, length, size):
        stop = min(start + size, length)
        yield start, stop, max(0, start - reach), min(length, stop + reach)
