"""HuBERT (Hsu et al. 2021), the published model's speech encoder."""

from __future__ import annotations

from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dawn.errors import AudioError, ConfigError
from dawn.models.audio.features import AudioNetwork, check_speech
from dawn.structs import SPEECH_RATE_HZ

HUBERT_STRIDE_SAMPLES = 320
"""Sound between two feature vectors."""
HUBERT_KERNEL_SAMPLES = 400
"""Sound that one feature vector of the convolutions sees."""
HUBERT_CHUNK_VECTORS = 1_000
"""Vectors computed at a time: 20 s."""


class HubertAudioEncoder(AudioNetwork):
    """HuBERT features as DAWN published them, for the ``paper`` presets.

    The recording is scaled to zero mean and unit variance as a whole. This coupling over time belongs to the published
    model. Every chunk of 20 s sees ``context_s`` of sound on both sides, which hides the seams; 0 is as published.
    """

    def __init__(self, model: nn.Module, context_s: float = 2.0) -> None:
        """Wrap a ``transformers.HubertModel`` (``engines.hubert`` loads one).

        Raises:
            ConfigError: The context is negative.
        """
        super().__init__()
        if context_s < 0:
            raise ConfigError(f"HuBERT context_s {context_s}: give 0 or more seconds")
        self.model = model
        self.context_vectors = round(context_s * SPEECH_RATE_HZ / HUBERT_STRIDE_SAMPLES)
        self.eval()

    @property
    def feature_size(self) -> int:
        """Numbers per video frame (D)."""
        return int(cast(Any, self.model).config.hidden_size)

    def train(self, mode: bool = True) -> HubertAudioEncoder:
        """Stay in evaluation mode: a frozen feature extractor must not drop units while others train."""
        super().train(False)
        return self

    @torch.no_grad()
    def encode(self, samples: Tensor, frame_count: int) -> Float[Tensor, "{frame_count} {self.feature_size}"]:
        """Encode speech (L,) at 16 kHz, without gradients; D is 1024 for HuBERT large.

        The whole sound is spread over ``frame_count`` frames, first on first and last on last.

        Raises:
            AudioError: There are fewer than 400 samples, or samples are not finite.
        """
        check_speech(samples, frame_count)
        if samples.shape[0] < HUBERT_KERNEL_SAMPLES:
            raise AudioError(f"{samples.shape[0]} samples of speech: HuBERT needs at least {HUBERT_KERNEL_SAMPLES}")
        sound = (samples - samples.mean()) / (samples.var(correction=0) + 1e-7).sqrt()
        total = (sound.shape[0] - HUBERT_KERNEL_SAMPLES) // HUBERT_STRIDE_SAMPLES + 1
        vectors = sound.new_empty(total, self.feature_size)
        for first in range(0, total, HUBERT_CHUNK_VECTORS):
            last = min(first + HUBERT_CHUNK_VECTORS, total)
            begin, end = max(first - self.context_vectors, 0), min(last + self.context_vectors, total)
            reach = HUBERT_KERNEL_SAMPLES - HUBERT_STRIDE_SAMPLES
            chunk = sound[begin * HUBERT_STRIDE_SAMPLES : end * HUBERT_STRIDE_SAMPLES + reach]
            vectors[first:last] = self.model(chunk[None]).last_hidden_state[0, first - begin : last - begin]
        return F.interpolate(vectors.T[None], size=frame_count, mode="linear", align_corners=True)[0].T.contiguous()
