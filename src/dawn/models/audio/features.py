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
from torch import Tensor
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
    """Turns speech into features at the frame rate of the video."""

    @property
    def feature_size(self) -> int:
        """Numbers per video frame (D)."""
        ...

    def encode(self, samples: Tensor, frame_count: int) -> Tensor:
        """samples (L,) float32 at 16 kHz -> (frame_count, feature_size), on the device of ``samples``."""
        ...


# ---------------------------------------------------------------------------------------------------------- log-mel


def whole_frames(samples: Tensor, frame_count: int) -> Tensor:
    """Cut or pad sound (..., L) with silence to exactly ``frame_count`` frames, (..., frame_count * 640)."""
    length = frame_count * FRAME_SAMPLES
    return F.pad(samples[..., :length], (0, max(0, length - samples.shape[-1])))


def _hz_to_mel(hz: float) -> float:
    """Slaney's scale: linear to 1 kHz (15 mel), then 27 steps for every factor of 6.4."""
    return hz * 3 / 200 if hz < 1_000 else 15 + 27 * math.log(hz / 1_000) / math.log(6.4)


def _mel_to_hz(mel: Tensor) -> Tensor:
    return torch.where(mel < 15, mel * 200 / 3, 1_000 * torch.exp((mel - 15) * math.log(6.4) / 27))


@lru_cache(maxsize=1)
def mel_filters() -> Tensor:
    """(80, 201) float32 triangular bands of unit area on Slaney's mel scale, 0 to 8000 Hz."""
    edges_mel = torch.linspace(0, _hz_to_mel(MEL_TOP_HZ), MEL_BANDS + 2, dtype=torch.float64)
    edges_hz = _mel_to_hz(edges_mel)
    bins_hz = torch.arange(FFT_SAMPLES // 2 + 1, dtype=torch.float64) * SPEECH_RATE_HZ / FFT_SAMPLES
    low, centre, high = (edges_hz[i : i + MEL_BANDS, None] for i in range(3))
    triangle = torch.minimum((bins_hz - low) / (centre - low), (high - bins_hz) / (high - centre)).clamp(min=0)
    return (triangle * 2 / (high - low)).float()


def _log_power(samples: Tensor) -> Tensor:
    """Samples (B, L + 400), half an analysis window beyond the sound on both sides -> (B, 80, L // 160) log10 power."""
    window = torch.hann_window(FFT_SAMPLES, dtype=samples.dtype, device=samples.device)
    spectrum = torch.stft(samples, FFT_SAMPLES, HOP_SAMPLES, window=window, center=False, return_complex=True)
    power = spectrum[..., :-1].abs().square()
    return torch.matmul(mel_filters().to(samples), power).clamp(min=1e-10).log10()


def log_mel(samples: Tensor, peak: float | Tensor | None = None, *, edges: bool = False) -> Tensor:
    """Whisper's log-mel spectrogram.

    samples: (B, L) float32 at 16 kHz; with ``edges`` (B, 200 + L + 200), where the caller supplies the neighbouring
    sound instead of the usual reflection. peak: log10 power from which the silence floor is measured, a number or
    (B,); ``None`` takes each call's own maximum as published, which couples every frame to the loudest one.
    Returns (B, 80, L // 160), 100 columns a second. Raises AudioError below 201 samples.
    Source: Radford et al. 2022, section 2.2.
    """
    needed = 2 * EDGE_SAMPLES + HOP_SAMPLES if edges else EDGE_SAMPLES + 1
    if samples.shape[-1] < needed:
        raise AudioError(f"{samples.shape[-1]} samples are too few for a spectrogram: give at least {needed}")
    if not edges:
        samples = F.pad(samples, (EDGE_SAMPLES, EDGE_SAMPLES), mode="reflect")
    log_power = _log_power(samples)
    if peak is None:
        reference = log_power.amax((1, 2))
    else:
        reference = torch.as_tensor(peak, dtype=log_power.dtype, device=log_power.device)
    floor = (reference - DYNAMIC_RANGE).reshape(-1, 1, 1)
    return (torch.maximum(log_power, floor) + 4) / 4


# ---------------------------------------------------------------------------------------------------------- Whisper


def _check_speech(samples: Tensor, frame_count: int) -> None:
    if samples.ndim != 1 or samples.shape[0] == 0:
        raise AudioError(f"speech of shape {tuple(samples.shape)}: give one channel with at least one sample")
    if frame_count < 1:
        raise AudioError(f"{frame_count} frames of speech: ask for at least one")
    # No copy, however long the sound is; NaN carries through.
    if not bool(torch.isfinite(torch.stack(torch.aminmax(samples))).all()):
        raise AudioError("the speech holds values that are not finite: decode the file again")


# ----------------------------------------------------------------------------------------------------------- HuBERT
