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

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dawn.config import PBNetConfig
from dawn.models.attention import FeedForward, LocalSelfAttention
from dawn.models.nouns import Posterior
from dawn.structs import BLINK_SIZE, POSE_SIZE

OUT_SIZE = POSE_SIZE + BLINK_SIZE


class Layer(nn.Module):
    """Pre-norm transformer layer with banded attention."""

    def __init__(self, config: PBNetConfig) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(config.width), nn.LayerNorm(config.width)
        self.attention = LocalSelfAttention(config.width, config.heads, config.window_frames)
        self.feed_forward = FeedForward(config.width, 3 * config.width, config.dropout)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Float[Tensor, "B T W"], valid: Bool[Tensor, "B T"] | None) -> Float[Tensor, "B T W"]:
        """Attend and transform; ``valid`` is false for padding."""
        x = x + self.dropout(self.attention(self.norm1(x), valid))
        return x + self.dropout(self.feed_forward(self.norm2(x)))


class PBNet(nn.Module):
    """Predicts changes of pose and blink against the first frame, normalised (``MotionSpace.pose_scale``; EAR / 0.1)."""

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
        """Frames to either side on which a frame's result depends."""
        return self.config.layers * self.config.window_frames + smoothing_reach(
            max(self.config.latent_smoothing_frames)
        )

    def encode(
        self,
        motion: Float[Tensor, "B T 8"],
        first: Float[Tensor, "B 8"],
        audio: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Posterior:
        """Find the latents that explain a recording.

        Args:
            motion: Changes against the first frame.
            first: State of the first frame, from ``first_state``.
            audio: Speech features.
            valid: False for padding.
        """
        h = self.motion_in(motion) + self._context(first, audio)
        for layer in self.encoder:
            h = layer(h, valid)
        mean, log_variance = self.to_posterior(h).chunk(2, -1)
        return Posterior(mean, log_variance.clamp(-8, 4))

    def decode(
        self,
        latent: Float[Tensor, "B T Z"],
        first: Float[Tensor, "B 8"],
        audio: Float[Tensor, "B T D"],
        valid: Bool[Tensor, "B T"] | None = None,
    ) -> Float[Tensor, "B T 8"]:
        """Turn latents, N(0, I) in generation, into motion. Arguments are those of ``encode``."""
        views = [latent, *(smooth_noise(latent, s) for s in self.config.latent_smoothing_frames)]
        h = self.latent_in(torch.cat(views, -1)) + self._context(first, audio)
        for layer in self.decoder:
            h = layer(h, valid)
        return self.motion_out(self.norm_out(h))

    def _context(self, first: Float[Tensor, "B 8"], audio: Float[Tensor, "B T D"]) -> Float[Tensor, "B T W"]:
        return self.audio_dropout(self.audio_in(self.audio_norm(audio))) + self.first_in(first)[:, None]


def smoothing_reach(width_frames: float) -> int:
    """Return the half length of the Gaussian window of this standard deviation."""
    return math.ceil(3 * width_frames)


def smooth_noise(x: Float[Tensor, "B T Z"], width_frames: float) -> Float[Tensor, "B T Z"]:
    """Smooth white noise over time with a Gaussian window, and scale it back to unit variance.

    Beyond the ends the series counts as zero, and the scale is that of the full window. So a chunk with enough context
    equals the whole.
    """
    reach = smoothing_reach(width_frames)
    t = torch.arange(-reach, reach + 1, device=x.device, dtype=x.dtype)
    window = torch.exp(-0.5 * (t / width_frames).square())
    window = window / window.square().sum().sqrt()
    channels = x.shape[-1]
    padded = F.pad(x.transpose(1, 2), (reach, reach))
    return F.conv1d(padded, window.expand(channels, 1, -1), groups=channels).transpose(1, 2)


EAR_UNIT = 0.1
"""Unit in which the networks see blink changes: a tenth of an eye aspect ratio."""


def first_state(pose: Float[Tensor, "*batch 6"], ear: Float[Tensor, "*batch 2"]) -> Float[Tensor, "*batch 8"]:
    """Describe the face that PBNet starts from: pose and eye aspect ratios, scaled to order one."""
    unit = pose.new_tensor([10.0, 10.0, 10.0, 0.1, 0.1, 0.1])
    centre = pose.new_tensor([0.0, 0.0, 0.0, 0.6, 0.0, 0.0])
    return torch.cat(((pose - centre) / unit, (ear - 0.3) / EAR_UNIT), -1)
