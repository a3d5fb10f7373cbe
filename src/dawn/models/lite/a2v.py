"""A2V for the ``lite`` motion space: a rectified-flow transformer over time (paper section 3.3).

noisy expression (T, K) ─┐
audio (T, D) ── norm, project, short convolution ──┤ sum ─▶ blocks (banded attention, feed-forward) ─▶ velocity (T, K)
pose, blink (T, 8) ──────┘                                   ▲ scale, shift, gate from time and source face
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dawn.config import A2VConfig
from dawn.models.attention import FeedForward, LocalSelfAttention
from dawn.structs import BLINK_SIZE, POSE_SIZE


def time_embedding(time: Tensor, size: int) -> Tensor:
    """Sines and cosines of diffusion time (B,) in [0, 1] -> (B, size)."""
    frequency = torch.exp(-math.log(10_000) / (size // 2) * torch.arange(size // 2, device=time.device))
    angle = 1000 * time[:, None] * frequency
    return torch.cat((angle.cos(), angle.sin()), -1)


class Block(nn.Module):
    """Transformer block whose norms are modulated by the condition (adaptive layer norm, Peebles and Xie 2022)."""

    def __init__(self, config: A2VConfig) -> None:
        super().__init__()
        width = config.width
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.attention = LocalSelfAttention(width, config.heads, config.window_frames)
        self.feed_forward = FeedForward(width, 4 * width, config.dropout)
        self.modulation = nn.Linear(width, 6 * width)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, condition: Tensor, valid: Tensor | None) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(F.silu(condition))[:, None].chunk(6, -1)
        h = self.attention(self.norm1(x) * (1 + scale1) + shift1, valid)
        x = x + gate1 * self.dropout(h)
        return x + gate2 * self.dropout(self.feed_forward(self.norm2(x) * (1 + scale2) + shift2))


class A2VTransformer(nn.Module):
    """Velocity of the expression coefficients of all frames at once."""

    def __init__(self, config: A2VConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.audio_norm = nn.LayerNorm(config.audio_size)
        self.audio_in = nn.Linear(config.audio_size, width)
        self.audio_mix = nn.Conv1d(width, width, 5, padding=2)
        self.audio_dropout = nn.Dropout(min(0.5, 2 * config.dropout))
        self.null_audio = nn.Parameter(torch.zeros(width))
        self.motion_in = nn.Linear(config.motion_size, width)
        self.head_in = nn.Linear(POSE_SIZE + BLINK_SIZE, width)
        self.time_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.source_in = nn.Sequential(nn.Linear(config.source_size, width), nn.SiLU(), nn.Linear(width, width))
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(width)
        self.motion_out = nn.Linear(width, config.motion_size)
        nn.init.zeros_(self.motion_out.weight)
        nn.init.zeros_(self.motion_out.bias)

    @property
    def reach_frames(self) -> int:
        """A frame's result depends on frames at most this far away."""
        return self.config.layers * self.config.window_frames + 2

    def embed_audio(self, audio: Tensor) -> Tensor:
        """(B, T, D) -> (B, T, width); the part that does not depend on the diffusion step."""
        h = self.audio_dropout(self.audio_in(self.audio_norm(audio)))
        return h + F.gelu(self.audio_mix(h.transpose(1, 2))).transpose(1, 2)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        audio: Tensor,
        head: Tensor,
        source: Tensor,
        drop_audio: Tensor | None = None,
        valid: Tensor | None = None,
    ) -> Tensor:
        """Velocity (B, T, K).

        x (B, T, K) noisy coefficients; time (B,); audio (B, T, width) from ``embed_audio``; head (B, T, 8) normalised
        pose and blink changes; source (B, K + 2) from ``MotionSpace.describe_source``; drop_audio (B,) bool: as if
        nothing were heard (guidance); valid (B, T) bool.
        """
        if drop_audio is not None:
            audio = torch.where(drop_audio[:, None, None], self.null_audio.to(audio.dtype), audio)
        h = self.motion_in(x) + audio + self.head_in(head)
        condition = self.time_in(time_embedding(time, self.config.width)) + self.source_in(source)
        for block in self.blocks:
            h = block(h, condition, valid)
        return self.motion_out(self.norm_out(h))
