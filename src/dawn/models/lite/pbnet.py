"""PBNet: head pose and blinks from speech (paper section 3.4), a conditional VAE with one latent vector a frame.

    training:   pose, blink, audio ─ encoder ─▶ mean, log-variance (T, Z) ─ sample ─▶ z
    generation: z ~ N(0, I), one a frame
    z ─ Gaussian windows of several widths ─┬─ decoder (banded attention) ─▶ pose change (T, 6), blink change (T, 2)
    audio ──────────────────────────────────┘

Against the published network: rotary positions over the whole head instead of 4 of 32 dimensions, one network for pose
and blink, and the decoder sees the latents through windows of several widths. White latents alone carry hardly any
slow motion, so that sampled heads either tremble or freeze; a window of width s turns them into sway of that time scale.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dawn.config import PBNetConfig
from dawn.models.attention import FeedForward, LocalSelfAttention
from dawn.structs import BLINK_SIZE, POSE_SIZE

OUT_SIZE = POSE_SIZE + BLINK_SIZE


class Posterior(NamedTuple):
    """Per-frame Gaussian, each (B, T, Z)."""

    mean: Tensor
    log_variance: Tensor


class Layer(nn.Module):
    """Pre-norm transformer layer with banded attention."""

    def __init__(self, config: PBNetConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = LocalSelfAttention(config.width, config.heads, config.window_frames)
        self.feed_forward = FeedForward(config.width, 3 * config.width, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, valid: Tensor | None) -> Tensor:
        x = x + self.dropout(self.attention(self.norm1(x), valid))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class PBNet(nn.Module):
    """Pose and blink changes against the first frame, normalised (``MotionSpace.pose_scale``; EAR / 0.1)."""

    def __init__(self, config: PBNetConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.audio_norm = nn.LayerNorm(config.audio_size)
        self.audio_in = nn.Linear(config.audio_size, width)
        self.audio_dropout = nn.Dropout(0.3)
        self.first_in = nn.Linear(OUT_SIZE, width)
        self.motion_in = nn.Linear(OUT_SIZE, width)
        self.encoder = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.to_posterior = nn.Linear(width, 2 * config.latent_size)
        self.latent_in = nn.Linear(config.latent_size * (1 + len(config.latent_smoothing_frames)), width)
        self.decoder = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm_out = nn.LayerNorm(width)
        self.motion_out = nn.Linear(width, OUT_SIZE)

    @property
    def reach_frames(self) -> int:
        """A frame's result depends on frames at most this far away."""
        return self.config.layers * self.config.window_frames + smoothing_reach(
            max(self.config.latent_smoothing_frames)
        )

    def encode(self, motion: Tensor, first: Tensor, audio: Tensor, valid: Tensor | None = None) -> Posterior:
        """motion (B, T, 8) changes; first (B, 8) absolute state of the first frame; audio (B, T, D)."""
        h = self.motion_in(motion) + self._context(first, audio)
        for layer in self.encoder:
            h = layer(h, valid)
        mean, log_variance = self.to_posterior(h).chunk(2, -1)
        return Posterior(mean, log_variance.clamp(-8, 4))

    def decode(self, latent: Tensor, first: Tensor, audio: Tensor, valid: Tensor | None = None) -> Tensor:
        """latent (B, T, Z) ~ N(0, I) -> motion (B, T, 8)."""
        views = [latent, *(smooth_noise(latent, s) for s in self.config.latent_smoothing_frames)]
        h = self.latent_in(torch.cat(views, -1)) + self._context(first, audio)
        for layer in self.decoder:
            h = layer(h, valid)
        return self.motion_out(self.norm_out(h))

    def _context(self, first: Tensor, audio: Tensor) -> Tensor:
        return self.audio_dropout(self.audio_in(self.audio_norm(audio))) + self.first_in(first)[:, None]


def smoothing_reach(width_frames: float) -> int:
    """Half length of the Gaussian window of this standard deviation."""
    return math.ceil(3 * width_frames)


def smooth_noise(x: Tensor, width_frames: float) -> Tensor:
    """White noise (B, T, Z) through a Gaussian window over time, scaled back to unit variance.

    Beyond the ends the series counts as zero, and the scale is that of the full window: a chunk with enough context equals
    the whole.
    """
    reach = smoothing_reach(width_frames)
    t = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    window = torch.exp(-0.5 * (t / width_frames).square())
    window = window / window.square().sum().sqrt()
    channels = x.shape[-1]
    padded = F.pad(x.transpose(1, 2), (reach, reach))
    return F.conv1d(padded, window.expand(channels, 1, -1), groups=channels).transpose(1, 2)


def kl_divergence(posterior: Posterior) -> Tensor:
    """KL(q || N(0, I)) per latent number, (B, T, Z)."""
    mean, log_variance = posterior
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)


EAR_UNIT = 0.1
"""Blink changes are given to the networks in tenths of an eye aspect ratio."""


def first_state(pose: Tensor, ear: Tensor) -> Tensor:
    """What PBNet is told of the face it starts from: pose (..., 6) and EAR (..., 2) -> (..., 8), of order one."""
    unit = pose.new_tensor([10.0, 10.0, 10.0, 0.1, 0.1, 0.1])
    centre = pose.new_tensor([0.0, 0.0, 0.0, 0.6, 0.0, 0.0])
    return torch.cat(((pose - centre) / unit, (ear - 0.3) / EAR_UNIT), -1)
