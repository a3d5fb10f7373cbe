"""Whisper's speech encoder (Radford et al. 2022)."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dawn.config import AudioConfig
from dawn.errors import ConfigError
from dawn.models.audio.features import (
    EDGE_SAMPLES,
    MEL_BANDS,
    AudioNetwork,
    check_speech,
    log_mel,
    measure_log_power,
)
from dawn.structs import FRAME_SAMPLES

HEAD_WIDTH = 64
POSITIONS = 1_500
"""Rows of the position table: 30 s."""
VECTORS_PER_FRAME = 2


def sinusoids(length: int, width: int) -> Float[Tensor, "{length} {width}"]:
    """Make the position table: sines, then cosines; wavelengths are geometric from 2 pi to 2 pi 10000."""
    half = width // 2
    rates = torch.exp(-math.log(10_000) / (half - 1) * torch.arange(half, dtype=torch.float64))
    angles = torch.arange(length, dtype=torch.float64)[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1).float()


class WhisperBlock(nn.Module):
    """Pre-norm transformer layer: full self-attention, then a GELU feed-forward of four times the width."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        # Whisper's keys have no bias: the stored third is zero (it would shift all scores of a query alike anyway).
        self.qkv = nn.Linear(width, 3 * width)
        self.attention_out = nn.Linear(width, width)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn_in = nn.Linear(width, 4 * width)
        self.ffn_out = nn.Linear(4 * width, width)

    def forward(self, x: Float[Tensor, "B N D"]) -> Float[Tensor, "B N D"]:
        """Mix the vectors of one window."""
        batch, length, width = x.shape
        qkv = self.qkv(self.attention_norm(x)).view(batch, length, 3, width // HEAD_WIDTH, HEAD_WIDTH)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).reshape(batch, length, width)
        x = x + self.attention_out(mixed)
        return x + self.ffn_out(F.gelu(self.ffn_in(self.ffn_norm(x))))


class WhisperEncoder(nn.Module):
    """The encoder half of Whisper: two convolutions, sinusoidal positions, ``depth`` layers, a final norm."""

    positions: Tensor

    def __init__(self, width: int = 384, depth: int = 4) -> None:
        super().__init__()
        self.conv1 = nn.Conv1d(MEL_BANDS, width, kernel_size=3, padding=1)
        self.conv2 = nn.Conv1d(width, width, kernel_size=3, stride=2, padding=1)
        self.blocks = nn.ModuleList(WhisperBlock(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.register_buffer("positions", sinusoids(POSITIONS, width), persistent=False)

    def forward(
        self, mel: Float[Tensor, "B 80 columns"], layers: tuple[int, ...] | None = None
    ) -> Float[Tensor, "B (columns+1)//2 D"]:
        """Encode a spectrogram, 50 vectors a second.

        Args:
            mel: From ``log_mel``, at most 3000 columns (30 s).
            layers: Hidden states to return, concatenated in this order. 0 comes after convolutions and positions, n
                after layer n; the last one is normalised. None returns the last.

        Raises:
            ConfigError: The spectrogram is longer than the position table.
        """
        layers = (len(self.blocks),) if layers is None else layers
        x = F.gelu(self.conv2(F.gelu(self.conv1(mel)))).transpose(1, 2)
        if x.shape[1] > POSITIONS:
            raise ConfigError(f"audio window of {x.shape[1]} vectors: Whisper takes at most {POSITIONS} (30 s)")
        x = x + self.positions[: x.shape[1]]
        states = {0: x}
        for number, block in enumerate(self.blocks[: max(layers)], start=1):
            x = block(x)
            states[number] = x
        if len(self.blocks) in layers:
            states[len(self.blocks)] = self.norm(x)
        return torch.cat([states[number] for number in layers], dim=-1)


class WhisperAudioEncoder(AudioNetwork):
    """Whisper features of a recording of any length: windows at fixed times, cross-faded, two vectors a frame.

    Window i covers the frames from i x (window - overlap); the end of the sound shortens only the last one. So features
    before the last window do not change when more sound follows (with a fixed ``peak``). Work memory is that of one
    window.
    """

    def __init__(self, config: AudioConfig | None = None) -> None:
        super().__init__()
        self.config = config or AudioConfig()
        self.encoder = WhisperEncoder(self.config.width, self.config.depth)

    @property
    def feature_size(self) -> int:
        """Numbers per video frame (D)."""
        return VECTORS_PER_FRAME * self.config.width * len(self.config.layers_used)

    @torch.no_grad()
    def encode(self, samples: Tensor, frame_count: int) -> Float[Tensor, "{frame_count} {self.feature_size}"]:
        """Encode speech (L,) at 16 kHz, in float32 and without gradients.

        The sound is cut, or continued with silence, to ``frame_count`` frames of 640 samples.

        Raises:
            AudioError: There is nothing to encode, or samples are not finite.
        """
        check_speech(samples, frame_count)
        peak = self._recording_peak(samples, frame_count) if self.config.peak is None else self.config.peak

        width = self.config.width * len(self.config.layers_used)
        output = torch.empty(VECTORS_PER_FRAME * frame_count, width, device=samples.device)
        fade = VECTORS_PER_FRAME * self.config.overlap_frames
        ramp = ((torch.arange(fade, device=samples.device) + 0.5) / max(fade, 1))[:, None]
        for start, stop in self._windows(frame_count):
            mel = log_mel(_cut(samples, frame_count, start, stop), peak, edges=True)
            vectors = self.encoder(mel.to(self.encoder.conv1.weight.dtype), self.config.layers_used)[0].float()
            first, last = VECTORS_PER_FRAME * start, VECTORS_PER_FRAME * stop
            if start:
                output[first : first + fade].lerp_(vectors[:fade], ramp)
                vectors, first = vectors[fade:], first + fade
            output[first:last] = vectors
        return output.view(frame_count, self.feature_size)

    def _windows(self, frame_count: int) -> Iterator[tuple[int, int]]:
        """Yield the windows' frame ranges; each later one is longer than its overlap with the one before."""
        size, overlap = self.config.window_frames, self.config.overlap_frames
        for start in range(0, max(frame_count - overlap, 1), size - overlap):
            yield start, min(start + size, frame_count)

    def _recording_peak(self, samples: Float[Tensor, " L"], frame_count: int) -> Float[Tensor, ""]:
        peaks = [
            measure_log_power(_cut(samples, frame_count, start, stop)).amax()
            for start, stop in self._windows(frame_count)
        ]
        return torch.stack(peaks).amax()


def _cut(samples: Float[Tensor, " L"], frame_count: int, start: int, stop: int) -> Float[Tensor, "1 N"]:
    """Cut out the frames [start, stop) of a recording of ``frame_count`` frames, with 200 samples beside them.

    At the recording's ends these are mirrored. No more than these frames is copied.
    """
    left, right = EDGE_SAMPLES * (start == 0), EDGE_SAMPLES * (stop == frame_count)
    first, last = start * FRAME_SAMPLES - EDGE_SAMPLES + left, stop * FRAME_SAMPLES + EDGE_SAMPLES - right
    heard = samples[first:last].float()
    heard = F.pad(heard, (0, last - first - heard.shape[0]))[None]
    return F.pad(heard, (left, right), mode="reflect")
