"""Mel-frequency cepstral coefficients as SyncNet hears them: those of the package python_speech_features by its defaults.

    samples ── pre-emphasis ── windows of 25 ms every 10 ms ── power ── 26 mel bands ── log ── cosine transform ── lifter ──▶

Source: Davis and Mermelstein 1980 (the coefficients); the settings are facts of that package. Unlike elsewhere: the window
is rectangular, band edges fall on whole bins of the spectrum, the transform is orthonormal, and the first coefficient is the
logarithm of the window's energy.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from dawn.measures.intervals import Float64Array
from dawn.structs import SPEECH_RATE_HZ, FloatArray

WINDOW_SAMPLES, HOP_SAMPLES, FFT_SAMPLES = 400, 160, 512
BANDS, COEFFICIENTS = 26, 13
PRE_EMPHASIS = 0.97
LIFTER = 22
FULL_SCALE = 32768
"""Samples count in steps of 16 bits: the first coefficient depends on it."""


def mfcc(samples: FloatArray) -> Float64Array:
    """Compute (13, N) coefficients of samples (L,) at 16 kHz within [-1, 1], 100 columns a second.

    L is at least 1, N = 1 + ceil((L - 400) / 160).

    The last window is filled up with silence. Samples are rounded to 16 bits first, as in the files that SyncNet reads.
    """
    steps = np.round(np.asarray(samples, np.float64) * FULL_SCALE).clip(-FULL_SCALE, FULL_SCALE - 1)
    emphasised = np.append(steps[0], steps[1:] - PRE_EMPHASIS * steps[:-1])
    count = 1 + max(0, -(-(len(steps) - WINDOW_SAMPLES) // HOP_SAMPLES))
    padded = np.pad(emphasised, (0, (count - 1) * HOP_SAMPLES + WINDOW_SAMPLES - len(steps)))
    windows = sliding_window_view(padded, WINDOW_SAMPLES)[::HOP_SAMPLES]
    power = np.abs(np.fft.rfft(windows, FFT_SAMPLES)) ** 2 / FFT_SAMPLES
    out = _log(power @ mel_bands().T) @ _transform().T
    out[:, 0] = _log(power.sum(1))
    return out.T


def _log(x: Float64Array) -> Float64Array:
    """Digital silence counts as the smallest step of a float."""
    return np.log(np.where(x == 0, np.finfo(np.float64).eps, x))


@lru_cache(maxsize=1)
def mel_bands() -> Float64Array:
    """(26, 257) triangles of height 1, their corners evenly spaced in mel from 0 to 8000 Hz, rounded down to whole bins."""
    top_mel = 2595 * np.log10(1 + SPEECH_RATE_HZ / 2 / 700)
    corners_hz = 700 * (10 ** (np.linspace(0, top_mel, BANDS + 2) / 2595) - 1)
    corners = np.floor((FFT_SAMPLES + 1) * corners_hz / SPEECH_RATE_HZ)
    bins = np.arange(FFT_SAMPLES // 2 + 1)
    return np.stack([np.interp(bins, corners[i : i + 3], [0.0, 1.0, 0.0]) for i in range(BANDS)])


@lru_cache(maxsize=1)
def _transform() -> Float64Array:
    """(13, 26) first rows of the orthonormal cosine transform, raised in the middle by the lifter."""
    order, band = np.arange(COEFFICIENTS)[:, None], np.arange(BANDS)
    rows = np.sqrt(2 / BANDS) * np.cos(np.pi * order * (2 * band + 1) / (2 * BANDS))
    return rows * (1 + LIFTER / 2 * np.sin(np.pi * order / LIFTER))
