"""PBNet as published: head pose or blinks from speech (paper section 3.4, after ACTOR), a conditional VAE.

Two networks of this kind were released, one for pose (6 numbers) and one for blinks (2). ``models.lite.pbnet`` is this
package's own, repaired one. Here the published faults stay, because the released weights were trained with them.

::

    training     motion, first, audio ─ encoder (dense attention) ─▶ mean, log-variance (T, 256) ─ sample ─▶ latent
    generation   latent ~ N(0, I), one vector a frame
    latent, first, audio ─ linear ─▶ memory (T, p) ─┐
    one learned query, the same for all frames ─ self-attention ─ [self-attention, cross-attention, feed-forward] ─▶ (T, k)

Motion goes in and comes out as the change against the first frame. Pose is normalised by ``normalise_pose``; eye aspect
ratios are raw. Attention of the decoder is banded, so that time and memory grow linearly with length.

Shapes: B batch, T frames, k numbers of motion, D audio features, Z latent, p and d widths.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dawn.config import PublishedPBNetConfig
from dawn.models.attention import Band, FeedForward, banded_attention, relative_bands
from dawn.models.nouns import Posterior

POSE_MIN = (-90.0, -90.0, -90.0, 0.0, 0.0, 0.0)
POSE_MAX = (90.0, 90.0, 90.0, 1.0, 720.0, 1080.0)
"""Range of yaw, pitch, roll (degrees), scale, x, y that becomes 0..1.

Places are pixels of a 120-px crop. 720 and 1080 belong to another picture, so places use a small part of the range.
"""
BLOCK_FRAMES = 128
"""Queries that attention takes at a time."""


def normalise_pose(pose: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 6"]:
    """Scale published pose from its units to 0..1."""
    low, high = pose.new_tensor(POSE_MIN), pose.new_tensor(POSE_MAX)
    return (pose - low) / (high - low)


def denormalise_pose(pose: Float[Tensor, "*batch 6"]) -> Float[Tensor, "*batch 6"]:
    """Undo ``normalise_pose``."""
    low, high = pose.new_tensor(POSE_MIN), pose.new_tensor(POSE_MAX)
    return pose * (high - low) + low


def sinusoidal_positions(
    frames: int, width: int, device: torch.device | None = None
) -> Float[Tensor, "{frames} {width}"]:
    """Make positions: sines in the even columns, cosines in the odd ones (Vaswani et al. 2017); ``width`` is even."""
    position = torch.arange(frames, device=device, dtype=torch.float32)[:, None]
    frequency = torch.exp(torch.arange(0, width, 2, device=device, dtype=torch.float32) * (-math.log(10_000.0) / width))
    angle = position * frequency
    return torch.stack((angle.sin(), angle.cos()), -1).flatten(1)


def rotate_pairs(x: Float[Tensor, "B heads T d"], size: int) -> Float[Tensor, "B heads T d"]:
    """Encode positions by rotating the first ``size`` dimensions of each head, in neighbouring pairs."""
    frequency = 10_000.0 ** (-torch.arange(0, size, 2, device=x.device, dtype=torch.float32) / size)
    angle = torch.arange(x.shape[-2], device=x.device, dtype=torch.float32)[:, None] * frequency
    cos, sin = angle.cos().to(x.dtype), angle.sin().to(x.dtype)
    a, b = x[..., 0:size:2], x[..., 1:size:2]
    turned = torch.stack((a * cos - b * sin, b * cos + a * sin), -1).flatten(-2)
    return torch.cat((turned, x[..., size:]), -1)


class BiasedAttention(nn.Module):
    """Banded multi-head attention without linear biases; part of each head is rotated."""

    def __init__(self, config: PublishedPBNetConfig) -> None:
        super().__init__()
        self.heads, self.rotary_size = config.heads, config.rotary_size
        inner = config.heads * config.head_size
        self.to_q = nn.Linear(config.width, inner, bias=False)
        self.to_k = nn.Linear(config.width, inner, bias=False)
        self.to_v = nn.Linear(config.width, inner, bias=False)
        self.to_out = nn.Linear(inner, config.width, bias=False)

    def forward(
        self, x: Float[Tensor, "B T p"], memory: Float[Tensor, "B T p"], bands: tuple[Band, ...]
    ) -> Float[Tensor, "B T p"]:
        """Attend from ``x`` to ``memory``; for self-attention they are the same."""
        q, k, v = (
            layer(source).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer, source in ((self.to_q, x), (self.to_k, memory), (self.to_v, memory))
        )
        q, k = rotate_pairs(q, self.rotary_size), rotate_pairs(k, self.rotary_size)
        return self.to_out(banded_attention(q, k, v, bands).transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Post-norm transformer layer, every frame with every other."""

    def __init__(self, width: int, config: PublishedPBNetConfig) -> None:
        super().__init__()
        self.heads, self.attention_dropout = config.heads, config.dropout
        self.to_qkv = nn.Linear(width, 3 * width)
        self.to_out = nn.Linear(width, width)
        self.feed_forward = FeedForward(width, config.inner, config.dropout)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T d"], valid: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B T d"]:
        """Attend and transform; ``valid`` is false for padding."""
        q, k, v = self.to_qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mask = None if valid is None else valid[:, None, None, :]
        drop = self.attention_dropout if self.training else 0.0
        h = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=drop)
        x = self.norm1(x + self.dropout(self.to_out(h.transpose(1, 2).flatten(2))))
        return self.norm2(x + self.dropout(self.feed_forward(x)))


class DecoderLayer(nn.Module):
    """Post-norm layer: self-attention, cross-attention to the memory, feed-forward."""

    def __init__(self, config: PublishedPBNetConfig) -> None:
        super().__init__()
        self.self_attention = BiasedAttention(config)
        self.cross_attention = BiasedAttention(config)
        self.feed_forward = FeedForward(config.width, config.inner, config.dropout)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(config.width) for _ in range(3))
        self.dropout = nn.Dropout(config.dropout)

    def forward(
        self,
        x: Float[Tensor, "B T p"],
        memory: Float[Tensor, "B T p"],
        self_bands: tuple[Band, ...],
        cross_bands: tuple[Band, ...],
    ) -> Float[Tensor, "B T p"]:
        """Attend within ``x``, then to ``memory``, and transform."""
        x = self.norm1(x + self.dropout(self.self_attention(x, x, self_bands)))
        x = self.norm2(x + self.dropout(self.cross_attention(x, memory, cross_bands)))
        return self.norm3(x + self.dropout(self.feed_forward(x)))


class MotionEncoder(nn.Module):
    """Turns the motion of a recording into one Gaussian a frame. Only training needs it."""

    def __init__(self, config: PublishedPBNetConfig) -> None:
        super().__init__()
        width = config.audio_width + 2 * config.width
        self.first_in = nn.Linear(config.outputs, config.width)
        self.motion_in = nn.Linear(config.outputs, config.width)
        self.audio_in = nn.Linear(config.audio_size, config.audio_width)
        self.layers = nn.ModuleList(EncoderLayer(width, config) for _ in range(config.layers))
        self.dropout = nn.Dropout(config.dropout)
        self.to_mean = nn.Linear(width, config.latent_size)
        self.to_log_variance = nn.Linear(width, config.latent_size)

    def forward(
        self,
        motion: Float[Tensor, "B T k"],
        first: Float[Tensor, "B k"],
        audio: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Posterior:
        """Encode; arguments are those of ``PBNet.encode``."""
        frames = motion.shape[1]
        reference = self.first_in(first)[:, None].expand(-1, frames, -1)
        h = torch.cat((reference, self.motion_in(motion), self.audio_in(audio)), -1)
        h = self.dropout(h + sinusoidal_positions(frames, h.shape[-1], h.device).to(h.dtype))
        for layer in self.layers:
            h = layer(h, valid)
        return Posterior(self.to_mean(h), self.to_log_variance(h))


class MotionDecoder(nn.Module):
    """Turns latents, first state and speech into motion. Generation needs nothing else."""

    def __init__(self, config: PublishedPBNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.first_in = nn.Linear(config.outputs, width)
        self.audio_in = nn.Linear(config.audio_size, config.audio_width)
        self.memory_in = nn.Linear(width + config.latent_size + config.audio_width, width)
        self.query = nn.Parameter(torch.empty(width).uniform_(-(width**-0.5), width**-0.5))
        self.self_bias = nn.Parameter(0.02 * torch.randn(config.bias_buckets, config.heads))
        self.cross_bias = nn.Parameter(0.02 * torch.randn(config.bias_buckets, config.heads))
        self.first_norm = nn.LayerNorm(width, bias=False)
        self.first_attention = BiasedAttention(config)
        self.layers = nn.ModuleList(DecoderLayer(config) for _ in range(config.layers))
        self.motion_out = nn.Linear(width, config.outputs)

    def forward(
        self,
        latent: Float[Tensor, "B T Z"],
        first: Float[Tensor, "B k"],
        audio: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T k"]:
        """Decode; arguments are those of ``PBNet.decode``."""
        batch, frames = latent.shape[:2]
        reference = self.first_in(first)[:, None].expand(-1, frames, -1)
        memory = self.memory_in(torch.cat((reference, latent, self.audio_in(audio)), -1))
        config = self.config
        self_bands, cross_bands = (
            relative_bands(table, frames, config.window_frames, config.bias_max_distance, BLOCK_FRAMES)
            for table in (self.self_bias, self.cross_bias)
        )
        h = self.query.expand(batch, frames, -1)
        normed = self.first_norm(h)
        h = h + self.first_attention(normed, normed, self_bands)
        for layer in self.layers:
            h = layer(h, memory, self_bands, cross_bands)
        out = self.motion_out(h)
        return out if valid is None else out * valid[..., None]


class PBNet(nn.Module):
    """One published network: ``outputs`` 6 for normalised pose, 2 for eye aspect ratios (left, right)."""

    def __init__(self, config: PublishedPBNetConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = MotionEncoder(config)
        self.decoder = MotionDecoder(config)

    def encode(
        self,
        motion: Float[Tensor, "B T k"],
        first: Float[Tensor, "B k"],
        audio: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Posterior:
        """Find the latents that explain a recording.

        Args:
            motion: Change against the first frame.
            first: State of the first frame.
            audio: Speech features.
            valid: False for padding, which nothing attends to.
        """
        return self.encoder(motion, first, audio, valid)

    def decode(
        self,
        latent: Float[Tensor, "B T Z"],
        first: Float[Tensor, "B k"],
        audio: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T k"]:
        """Turn latents into the change against the first frame.

        Args:
            latent: N(0, I) in generation.
            first: State of the first frame.
            audio: Speech features.
            valid: Where it is false the change is zero. As published, padding is attended to all the same.
        """
        return self.decoder(latent, first, audio, valid)
