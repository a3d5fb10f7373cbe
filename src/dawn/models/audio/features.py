"""Speech to audio features: one vector a video frame (25 fps).

    samples (L,) 16 kHz ── windows ── log-mel ── Whisper encoder (50 Hz) ── cross-fade ── 2 vectors a frame ──▶ (T, D)
    samples (L,) 16 kHz ── chunks ───────────── HuBERT (~50 Hz) ─────────── linear resampling ──────────────▶ (T, 1024)

``AudioEncoder`` is the interface that the rest of the package sees. The ``lite`` presets use ``WhisperAudioEncoder``,
whose features depend only on the sound near a frame, never on the length of the recording; the ``paper`` presets use
``HubertAudioEncoder`` as published.

Sources: Radford et al. 2022 (Whisper), Hsu et al. 2021 (HuBERT), DAWN (arXiv 2410.13726) for the HuBERT recipe.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Protocol

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from dawn.errors import AudioError
from dawn.structs import FRAME_SAMPLES, SPEECH_RATE_HZ

MEL_BANDS = 80
MEL_TOP_HZ = 8_000.0
FFT_SAMPLES = 400
HOP_SAMPLES = 160
EDGE_SAMPLES = FFT_SAMPLES // 2
"""Samples that the first and the last analysis frame reach beyond the sound."""

DYNAMIC_RANGE = 8.0
"""Everything more than 8 decades (log10 of power) below the peak counts as silence."""


class AudioEncoder(Protocol):
    """Turns speech into features at the frame rate of the video (25 fps)."""

    @property
    def feature_size(self) -> int:
        """Numbers per video frame (D)."""
        ...

    def encode(
        self, samples: Float[Tensor, " L"], frame_count: int
    ) -> Float[Tensor, "{frame_count} {self.feature_size}"]:
        """Encode speech at 16 kHz, on the device of ``samples``."""
        ...


class AudioNetwork(nn.Module, AudioEncoder):
    """An ``AudioEncoder`` with weights: what a preset can hold."""


# ---------------------------------------------------------------------------------------------------------- log-mel


def fit_to_frames(samples: Float[Tensor, "*batch L"], frame_count: int) -> Float[Tensor, "*batch samples"]:
    """Cut sound at 16 kHz, or pad it with silence, to exactly ``frame_count`` frames of 640 samples."""
    length = frame_count * FRAME_SAMPLES
    return F.pad(samples[..., :length], (0, max(0, length - samples.shape[-1])))


def _hz_to_mel(hz: float) -> float:
    """Convert to Slaney's scale: linear to 1 kHz (15 mel), then 27 steps for every factor of 6.4."""
    return hz * 3 / 200 if hz < 1_000 else 15 + 27 * math.log(hz / 1_000) / math.log(6.4)


def _mel_to_hz(mel: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return torch.where(mel < 15, mel * 200 / 3, 1_000 * torch.exp((mel - 15) * math.log(6.4) / 27))


@lru_cache(maxsize=1)
def mel_filters() -> Float[Tensor, "80 201"]:
    """Make triangular bands of unit area on Slaney's mel scale, 0 to 8000 Hz, float32."""
    edges_mel = torch.linspace(0, _hz_to_mel(MEL_TOP_HZ), MEL_BANDS + 2, dtype=torch.float64)
    edges_hz = _mel_to_hz(edges_mel)
    bins_hz = torch.arange(FFT_SAMPLES // 2 + 1, dtype=torch.float64) * SPEECH_RATE_HZ / FFT_SAMPLES
    low, centre, high = (edges_hz[i : i + MEL_BANDS, None] for i in range(3))
    triangle = torch.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)).clamp(min=0)
    return (triangle * 2 / (high - low)).float()


def measure_log_power(samples: Float[Tensor, "B L"]) -> Float[Tensor, "B 80 (L-400)//160"]:
    """Measure log10 power in mel bands, 100 columns a second.

    ``samples`` reach half an analysis window (200 samples) beyond the wanted sound on both sides.
    """
    window = torch.hann_window(FFT_SAMPLES, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(samples, FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True)
    power = spectrum[..., :-1].abs().square()
    return torch.matmul(mel_filters().to(samples), power).clamp(min=1e-10).log10()


def log_mel(
    samples: Float[Tensor, "B L"], peak: float | Float[Tensor, "*clips"] | None = None, *, edges: bool = False
) -> Float[Tensor, "B 80 columns"]:
    """Make Whisper's log-mel spectrogram (Radford et al. 2022, section 2.2), 100 columns a second.

    Args:
        samples: Sound at 16 kHz.
        peak: Log10 power from which the silence floor is measured. None takes each call's own maximum as published,
            which couples every frame to the loudest one.
        edges: ``samples`` hold 200 samples of the neighbouring sound on both sides. Otherwise the ends are reflected.

    Raises:
        AudioError: There are fewer than 201 samples (with ``edges``: 560).
    """
    needed = 2 * EDGE_SAMPLES + HOP_SAMPLES if edges else EDGE_SAMPLES + 1
    if samples.shape[-1] < needed:
        raise AudioError(f"{samples.shape[-1]} samples are too few for a spectrogram: give at least {needed}")
    if not edges:
        samples = F.pad(samples, (EDGE_SAMPLES, EDGE_SAMPLES), mode="reflect")
    log_power = measure_log_power(samples)
    if peak is None:
        reference = log_power.amax((1, 2))
    else:
        reference = torch.as_tensor(peak, dtype=log_power.dtype, device=log_power.device)
    floor = (reference - DYNAMIC_RANGE).reshape(-1, 1, 1)
    return (torch.maximum(log_power, floor) + 4) / 4


def check_speech(samples: Tensor, frame_count: int) -> None:
    """Refuse speech that cannot be encoded.

    Raises:
        AudioError: There is not one channel of at least one sample, no frame is wanted, or a sample is not finite.
    """
    if samples.ndim != 1 or samples.shape[0] == 0:
        raise AudioError(f"speech of shape {tuple(samples.shape)}: give one channel with at least one sample")
    if frame_count < 1:
        raise AudioError(f"{frame_count} frames of speech: ask for at least one")
    # No copy, however long the sound is; NaN carries through.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(samples))).all()):
        raise AudioError("the speech holds values that are not finite: decode the file again")
