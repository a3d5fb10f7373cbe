"""A2V for the ``lite`` motion space: a rectified-flow transformer over time (paper section 3.3).

noisy expression (T, K) ─┐
audio (T, D) ── norm, project, short convolution ──┤ sum ─▶ blocks (banded attention, feed-forward) ─▶ velocity (T, K)
pose, blink (T, 8) ──────┘                                   ▲ scale, shift, gate from time and source face

Shapes: B batch, T frames, K expression coefficients, D audio features, W width. Another condition, such as emotion, is one
field of ``Conditions`` and one embedding in ``A2VTransformer``.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dawn.config import A2VConfig
from dawn.models.attention import FeedForward, LocalSelfAttention
from dawn.structs import BLINK_SIZE, POSE_SIZE


class Conditions(NamedTuple):
    """What the network is told beside the noisy coefficients and the time."""

    audio: Float[Tensor, "B T W"]
    """Speech, from ``A2VTransformer.embed_audio``."""
    head: Float[Tensor, "B T 8"]
    """Normalised changes of pose and blink."""
    source: Float[Tensor, "B S"]
    """The source face, from ``MotionSpace.describe_source``; S = K + 2."""
    extra: Float[Tensor, "B T W"] | None = None
    """Further conditions of each frame, embedded and summed."""

    def cut(self, low: int, high: int) -> Conditions:
        """Keep the frames [low, high)."""
        extra = None if self.extra is None else self.extra[:, low:high]
        return Conditions(self.audio[:, low:high], self.head[:, low:high], self.source, extra)


def time_embedding(time: Float[Tensor, " B"], size: int) -> Float[Tensor, "B {size}"]:
    """Embed diffusion time in [0, 1]: cosines, then sines."""
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

    def forward(
        self, x: Float[Tensor, "B T W"], condition: Float[Tensor, "B W"], valid: Bool[Tensor, "B T"] | None
    ) -> Float[Tensor, "B T W"]:
        """Attend and transform; ``condition`` is diffusion time and source face, ``valid`` is false for padding."""
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
        """Frames to either side on which a frame's result depends."""
        return self.config.layers * self.config.window_frames + 2

    def embed_audio(self, audio: Float[Tensor, "B T D"]) -> Float[Tensor, "B T W"]:
        """Embed speech features: the part that does not depend on the diffusion step."""
        h = self.audio_dropout(self.audio_in(self.audio_norm(audio)))
        return h + F.gelu(self.audio_mix(h.transpose(1, 2))).transpose(1, 2)

    def forward(
        self,
        x: Float[Tensor, "B T K"],
        time: Float[Tensor, " B"],
        conditions: Conditions,
        drop_audio: Bool[Tensor, " B"] | None = None,
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T K"]:
        """Predict the velocity.

        Args:
            x: Noisy coefficients.
            time: Diffusion time, 0 is noise and 1 data.
            conditions: Speech, head, source face.
            drop_audio: Rows to treat as if nothing were heard (for guidance).
            valid: False for padding.
        """
        audio, head, source, extra = conditions
        if drop_audio is not None:
            audio = torch.where(drop_audio[:, None, None], self.null_audio.to(audio.dtype), audio)
        h = self.motion_in(x) + audio + self.head_in(head)
        if extra is not None:
            h = h + extra
        condition = self.time_in(time_embedding(time, self.config.width)) + self.source_in(source)
        for block in self.blocks:
            h = block(h, condition, valid)
        return self.motion_out(self.norm_out(h))
