"""The published U-Net computed as its code does: the yardstick of ``models.a2v_unet``, in benchmarks and in tests.

Tensors (B, C, T, H, W), 3-D convolutions with kernels (1, k, k), norms written out, softmax over two keys per condition, T x T
attention under an added mask, source and mask repeated for every frame and convolved in every step. It reads the parameters
of an ``A2VUNet`` and shares no computation with it.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dawn.models.paper.a2v import A2VUNet, Level, TemporalAttention
from dawn.models.paper.a2v_blocks import ConditionGate, ResBlock, SpatialAttention, SpatialLinearAttention

MASKED = -1e8


def channel_norm(x: Tensor, gain: Tensor, axis: int) -> Tensor:
    """Layer norm with a gain only, over one axis."""
    shape = [1] * x.ndim
    shape[axis] = -1
    variance = x.var(axis, unbiased=False, keepdim=True)
    return (x - x.mean(axis, keepdim=True)) / (variance + 1e-5).sqrt() * gain.view(shape)


def spatial_conv(x: Tensor, layer: nn.Conv2d) -> Tensor:
    """(B, C, T, H, W), kernel (1, k, k)."""
    stride, padding = (1, *layer.stride), (0, *(int(n) for n in layer.padding))
    return F.conv3d(x, layer.weight[:, :, None], layer.bias, stride, padding)


def spatial_conv_transposed(x: Tensor, layer: nn.ConvTranspose2d) -> Tensor:
    return F.conv_transpose3d(x, layer.weight[:, :, None], layer.bias, (1, *layer.stride), (0, *layer.padding))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """(..., n, heads d) -> (..., heads, n, d)."""
    return x.unflatten(-1, (heads, -1)).transpose(-2, -3)


def merge_heads(x: Tensor) -> Tensor:
    return x.transpose(-2, -3).flatten(-2)


def rotate(x: Tensor) -> Tensor:
    """Rotary embedding of (..., T, d): neighbouring dimensions 2i and 2i + 1 turn by t 10000^(-2i/d)."""
    frames, size = x.shape[-2:]
    frequency = 1.0 / 10_000 ** (torch.arange(0, size, 2, device=x.device).float() / size)
    angle = (torch.arange(frames, device=x.device).float()[:, None] * frequency).repeat_interleave(2, -1)
    angle = angle.to(torch.promote_types(x.dtype, torch.float32))
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack((-odd, even), -1).flatten(-2)
    return x * angle.cos().to(x.dtype) + turned * angle.sin().to(x.dtype)


def relative_bias(table: Tensor, frames: int, max_distance: int) -> Tensor:
    """(heads, T, T) from (buckets, heads); row: query, column: key."""
    half = table.shape[0] // 2
    exact = half // 2
    bias = table.new_zeros((frames, frames, table.shape[1]))
    for offset in range(-frames + 1, frames):
        distance = abs(offset)
        if distance >= exact:
            share = math.log(distance / exact) / math.log(max_distance / exact)
            distance = min(exact + int(share * (half - exact) + 1e-9), half - 1)
        bucket = distance + (half if offset > 0 else 0)
        bias.diagonal(offset).copy_(table[bucket][:, None].expand(-1, frames - abs(offset)))
    return bias.permute(2, 0, 1)


class PlainUNet:
    """Call with (x, time, source, mask, condition), shapes as in ``A2VUNet.forward`` and ``prepare``."""

    def __init__(self, network: A2VUNet) -> None:
        self.net = network
        self.config = network.config

    def __call__(self, x: Tensor, time: Tensor, source: Tensor, mask: Tensor, condition: Tensor) -> Tensor:
        net = self.net
        frames = x.shape[2]
        constant = torch.cat((source, mask), 1)[:, :, None].expand(-1, -1, frames, -1, -1)
        bias = self.time_bias(frames)
        t = self.embedded(time)
        h = spatial_conv(torch.cat((x, constant), 1), net.stem)
        stem = h.clone()
        h = self.temporal(h, net.stem_attention, bias)
        skips = []
        for level in net.down:
            h = self.level(h, level, t, condition, bias)
            skips.append(h)
            h = h if level.resample is None else spatial_conv(h, level.resample)
        h = self.block(h, net.middle.first, t, condition)
        h = self.full_spatial(h, net.middle.spatial)
        h = self.temporal(h, net.middle.temporal, bias)
        h = self.block(h, net.middle.second, t, condition)
        for level in net.up:
            h = self.level(torch.cat((h, skips.pop()), 1), level, t, condition, bias)
            h = h if level.resample is None else spatial_conv_transposed(h, level.resample)
        h = torch.cat((h, stem), 1)
        heads = []
        for head in (net.flow_head, net.occlusion_head):
            y = self.block(h, head.block, None, None)
            heads.append(F.conv3d(y, head.out.weight[:, :, None, None, None], head.out.bias))
        return torch.cat(heads, 1)

    def embedded(self, time: Tensor) -> Tensor:
        embedding = self.net.time_embedding
        half = embedding.expand.in_features // 2
        frequency = torch.exp(torch.arange(half, device=time.device) * -(math.log(10_000) / (half - 1)))
        angle = time[:, None] * frequency[None]
        waves = torch.cat((angle.sin(), angle.cos()), -1).to(embedding.expand.weight.dtype)
        return embedding.project(F.gelu(embedding.expand(waves)))

    def time_bias(self, frames: int) -> Tensor:
        """(heads, T, T): relative bias, and a large negative number outside the window."""
        config = self.config
        bias = relative_bias(self.net.relative_bias.weight, frames, config.bias_max_distance)
        index = torch.arange(frames, device=bias.device)
        outside = (index[:, None] - index[None]).abs() > config.window_frames
        return bias + outside.to(bias.dtype) * MASKED

    def level(self, x: Tensor, level: Level, time: Tensor, condition: Tensor, bias: Tensor) -> Tensor:
        h = self.block(x, level.first, time, condition)
        h = self.block(h, level.second, time, condition)
        h = self.linear_spatial(h, level.spatial)
        return self.temporal(h, level.temporal, bias)

    def block(self, x: Tensor, block: ResBlock, time: Tensor | None, condition: Tensor | None) -> Tensor:
        h = F.group_norm(
            spatial_conv(x, block.conv1), block.norm1.num_groups, block.norm1.weight, block.norm1.bias, 1e-5
        )
        if block.time is not None and time is not None:
            scale, shift = block.time(F.silu(time))[:, :, None, None, None].chunk(2, 1)
            h = h * (scale + 1) + shift
        h = F.silu(h)
        if condition is not None:
            config = self.config
            parts = condition.split((config.audio_size, config.pose_size, config.eye_size), -1)
            for gate, part in zip(block.conditions.values(), parts, strict=True):
                h = h + self.cross(x, gate, part)
        h = F.group_norm(
            spatial_conv(h, block.conv2), block.norm2.num_groups, block.norm2.weight, block.norm2.bias, 1e-5
        )
        if block.shortcut is not None:
            x = F.conv3d(x, block.shortcut.weight[:, :, None, None, None], block.shortcut.bias)
        return F.silu(h) + x

    def cross(self, x: Tensor, gate: ConditionGate, condition: Tensor) -> Tensor:
        """One condition (B, T, size) -> (B, out, T, H, W)."""
        batch, _, frames, height, width = x.shape
        context = gate.context(F.silu(condition)).flatten(0, 1)[:, None]
        tokens = channel_norm(
            x.permute(0, 2, 3, 4, 1).reshape(batch * frames, height * width, -1), gate.norm.weight, -1
        )
        query = split_heads(gate.to_query(tokens), gate.heads)
        key, value = (split_heads(part, gate.heads) for part in gate.to_key_value(context).chunk(2, -1))
        null_key, null_value = (part.expand(*key.shape[:2], 1, -1) for part in gate.null_key_value)
        key, value = torch.cat((null_key, key), 2), torch.cat((null_value, value), 2)
        query = F.normalize(query, dim=-1) * gate.query_scale
        key = F.normalize(key, dim=-1) * gate.key_scale
        weights = (query @ key.transpose(-1, -2) * 8.0).softmax(-1)
        y = channel_norm(gate.to_out(merge_heads(weights @ value)), gate.out_norm.weight, -1)
        return y.view(batch, frames, height, width, -1).permute(0, 4, 1, 2, 3)

    def linear_spatial(self, x: Tensor, layer: SpatialLinearAttention) -> Tensor:
        batch, _, frames, height, width = x.shape
        pictures = channel_norm(x, layer.norm.weight, 1).transpose(1, 2).flatten(0, 1)
        qkv = F.conv2d(pictures, layer.to_qkv.weight[:, :, None, None])
        query, key, value = (part.flatten(2).unflatten(1, (layer.heads, -1)) for part in qkv.chunk(3, 1))
        query = query.softmax(-2) * query.shape[-2] ** -0.5
        context = torch.einsum("bhdn,bhen->bhde", key.softmax(-1), value)
        out = torch.einsum("bhde,bhdn->bhen", context, query).flatten(1, 2).unflatten(-1, (height, width))
        out = F.conv2d(out, layer.to_out.weight[:, :, None, None], layer.to_out.bias)
        return x + out.unflatten(0, (batch, frames)).transpose(1, 2)

    def full_spatial(self, x: Tensor, layer: SpatialAttention) -> Tensor:
        height, width = x.shape[-2:]
        tokens = channel_norm(x, layer.norm.weight, 1).permute(0, 2, 3, 4, 1).flatten(2, 3)
        query, key, value = (split_heads(part, layer.heads) for part in layer.to_qkv(tokens).chunk(3, -1))
        weights = (query * query.shape[-1] ** -0.5 @ key.transpose(-1, -2)).softmax(-1)
        out = layer.to_out(merge_heads(weights @ value))
        return x + out.unflatten(2, (height, width)).permute(0, 4, 1, 2, 3)

    def temporal(self, x: Tensor, layer: TemporalAttention, bias: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        tokens = channel_norm(x, layer.norm.weight, 1).permute(0, 3, 4, 2, 1).flatten(1, 2)
        query, key, value = (split_heads(part, layer.heads) for part in layer.to_qkv(tokens).chunk(3, -1))
        query, key = rotate(query * query.shape[-1] ** -0.5), rotate(key)
        weights = (query @ key.transpose(-1, -2) + bias).softmax(-1)
        out = layer.to_out(merge_heads(weights @ value))
        return x + out.unflatten(1, (height, width)).permute(0, 4, 3, 1, 2)
