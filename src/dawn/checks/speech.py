"""Checks of a recording as speech: levels, pauses, noise, clipping, music. Simple rules on 16 kHz mono."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from dawn.checks.findings import Finding, judge_value
from dawn.measures.motion import find_runs
from dawn.rules_config import SilenceRules
from dawn.structs import SPEECH_RATE_HZ, FloatArray, Speech

Float64Array = NDArray[np.float64]

QUIET_DBFS = SilenceRules().level_dbfs
"""Below it the mouth is shut anyway."""
BLOCK = SPEECH_RATE_HZ // 50
"""Levels are measured in blocks of 20 ms."""
BLOCKS_A_SECOND = SPEECH_RATE_HZ / BLOCK
FLOOR_DBFS = -96.0
"""16-bit sound has nothing below this, and digital silence needs some number."""
FLOOR_PERCENTILE, LOUD_PERCENTILE = 10, 95
ABOVE_FLOOR_DB = 6.0
BELOW_LOUD_DB = 30.0
HANG_BLOCKS = 7
"""Gaps of up to 0.14 s to either side are stops and soft consonants within speech."""
MIN_PAUSE_BLOCKS = 10
QUIETEST_PERCENTILE = 5

MIN_DURATION_S = 1.0
"""Shorter is hardly a word; the networks look at more than a second around every frame."""
MAX_START_S = 1.0
"""The video would begin with a resting face for that long."""
MIN_SPEECH_SHARE = 0.3
"""Of 300 recordings of speech 95 % have over 0.8."""
MIN_LEVEL_DBFS = -36.0
"""Lips made from the quieter example still correlate with its own: 0.93 at -34.5 dBFS, 0.85 at -40, 0.73 at -46."""
MIN_SNR_DB = 15.0
"""Lips made from the example under noise (white, pink, babble, music) still correlate with its own.

0.84-0.92 at 15 dB, 0.78-0.85 at 10, 0.70-0.80 at 5.
"""
CLIP_NEAR = 0.985
CLIP_RUN = 3
MAX_CLIPPED_SHARE = 0.002
"""Lips made from the clipped example still correlate with its own.

0.92 at 0.12 % (6 dB too loud), 0.86 at 1.9 % (9.5 dB too loud).
"""
AUDIBLE_DBFS = -60.0
MAX_STEADINESS = 0.46
"""Music made by rule (60 pieces) is always found: alone, and under speech at 0 and -10 dB.

At -15 dB 0.78 of it is found, at -20 dB 0.42. False alarms: none in 122 recordings of 7 s, 0.04 in 261 of 1 s, none in
white noise. Real music and singing were not tried.
"""

SPECTRUM_WINDOW = 1024
SPECTRUM_HOP = BLOCK
MUSIC_BINS = slice(6, 256)
WHITENING_BINS = 15
STEADY_LAG = 10
SPECTRA_AT_ONCE = 2048


class Activity(NamedTuple):
    """Where somebody speaks, in blocks of 20 ms.

    levels: (N,) dBFS. speech: (N,) bool, true also in the short gaps within speech.
    """

    levels: Float64Array
    speech: NDArray[np.bool_]


def levels_dbfs(samples: FloatArray) -> Float64Array:
    """Measure the level of every 20 ms: (L,) -> (N,), N = ceil(L / 320). 0 dBFS is a full-scale square wave."""
    padded = np.pad(samples, (0, -len(samples) % BLOCK)).reshape(-1, BLOCK)
    power = np.einsum("nb,nb->n", padded, padded, dtype=np.float64) / BLOCK
    return 10 * np.log10(np.maximum(power, 10 ** (FLOOR_DBFS / 10)))


def detect_speech(samples: FloatArray) -> Activity:
    """Detect speech in samples (L,) by energy.

    A block counts if it is 6 dB over the floor (10th percentile of all levels) and at most 30 dB under the loud ones
    (95th percentile). It must also be over ``QUIET_DBFS``, below which the mouth is shut anyway.
    """
    levels = levels_dbfs(samples)
    floor, loud = np.percentile(levels, [FLOOR_PERCENTILE, LOUD_PERCENTILE])
    over = levels > max(floor + ABOVE_FLOOR_DB, loud - BELOW_LOUD_DB, QUIET_DBFS)
    spread = np.convolve(over, np.ones(2 * HANG_BLOCKS + 1))[HANG_BLOCKS : HANG_BLOCKS + len(over)]
    return Activity(levels, spread > 0.5)


def find_spoken_frames(samples: FloatArray, frames: int) -> NDArray[np.bool_]:
    """Mark the frames (frames,) in which somebody speaks, by ``detect_speech``; two blocks make a frame."""
    if not len(samples):
        return np.zeros(frames, np.bool_)
    blocks = detect_speech(samples).speech[: 2 * frames]
    return np.asarray(np.pad(blocks, (0, 2 * frames - len(blocks))).reshape(frames, 2).any(1))


def mean_level(levels: Float64Array) -> float:
    """Return the level of the mean power, in dBFS."""
    return float(10 * np.log10((10 ** (levels / 10)).mean()))


def clipped_share(samples: FloatArray) -> float:
    """Measure the share of samples (L,) in the flat tops of clipping.

    Flat tops are ``CLIP_RUN`` or more samples in a row within 1.5 % of the largest.
    """
    size = np.abs(samples)
    near = size >= CLIP_NEAR * size.max(initial=1e-9)
    lengths = np.diff(find_runs(near), axis=1)
    return float(lengths[lengths >= CLIP_RUN].sum() / max(1, len(samples)))


def noise_level(heard: Activity) -> float:
    """Measure the level of the pauses in dBFS; under 0.2 s of them, of the quietest twentieth."""
    pauses = heard.levels[~heard.speech]
    if len(pauses) >= MIN_PAUSE_BLOCKS:
        return mean_level(pauses)
    return float(np.percentile(heard.levels, QUIETEST_PERCENTILE))


def steadiness(samples: FloatArray, levels: Float64Array) -> float:
    """Measure how alike the spectral lines of two audible moments 0.2 s apart are: mean cosine.

    A held tone gives 1. Noise, and a voice, whose pitch never rests, give about 0.4. It is 0 if nothing is audible for
    0.2 s. Lines are what of the log spectrum (64 ms, 0.1 to 4 kHz) lies above its own running mean of 0.23 kHz.

    Args:
        samples: (L,).
        levels: (N,) from ``levels_dbfs``.
    """
    window = np.hanning(SPECTRUM_WINDOW)
    count = (len(samples) - SPECTRUM_WINDOW) // SPECTRUM_HOP + 1
    cosines = []
    for start in range(0, count, SPECTRA_AT_ONCE):
        stop = min(count, start + SPECTRA_AT_ONCE + STEADY_LAG)
        piece = samples[start * SPECTRUM_HOP : (stop - 1) * SPECTRUM_HOP + SPECTRUM_WINDOW]
        frames = np.lib.stride_tricks.sliding_window_view(piece, SPECTRUM_WINDOW)[::SPECTRUM_HOP]
        spectrum = np.log(np.abs(np.fft.rfft(frames * window, axis=1))[:, MUSIC_BINS] + 1e-6)
        smooth = np.stack([np.convolve(row, np.ones(WHITENING_BINS) / WHITENING_BINS, "same") for row in spectrum])
        lines = (spectrum - smooth).clip(0)
        lines /= np.linalg.norm(lines, axis=1, keepdims=True) + 1e-9
        cosine = np.einsum("nf,nf->n", lines[:-STEADY_LAG], lines[STEADY_LAG:])
        middle = levels[start : start + len(cosine) + STEADY_LAG]
        loud = np.minimum(middle[: len(cosine)], middle[STEADY_LAG : STEADY_LAG + len(cosine)]) > AUDIBLE_DBFS
        cosines.append(cosine[loud])
    steady = np.concatenate(cosines) if cosines else np.zeros(0)
    return float(steady.mean()) if len(steady) else 0.0


def examine_speech(speech: Speech) -> list[Finding]:
    """Examine a recording that can be read. Where no speech is heard, its start, level and noise are None."""
    heard = detect_speech(speech.samples)
    share = float(heard.speech.mean())
    clipped = clipped_share(speech.samples)
    steady = steadiness(speech.samples, heard.levels)
    return [
        judge_value(
            "duration",
            speech.duration_s,
            "s",
            speech.duration_s < MIN_DURATION_S,
            f"under {MIN_DURATION_S:g} s hardly a word can be heard: give a longer recording",
        ),
        judge_value(
            "speech_share",
            share,
            "of the time",
            share < MIN_SPEECH_SHARE,
            f"little of it stands out as speech (under {MIN_SPEECH_SHARE}): cut the pauses, or record with less noise",
        ),
        *_judge_levels(heard),
        judge_value(
            "clipping",
            clipped,
            "of samples",
            clipped > MAX_CLIPPED_SHARE,
            "the sound is clipped: record it again at a lower level",
        ),
        judge_value(
            "steadiness",
            steady,
            "",
            steady > MAX_STEADINESS,
            f"there is music or hum in it (over {MAX_STEADINESS}): give the voice alone",
        ),
    ]


def _judge_levels(heard: Activity) -> list[Finding]:
    """Judge when speech begins, how loud it is, and how far it stands above the noise."""
    if not heard.speech.any():
        return [Finding("start", None, "s"), Finding("level", None, "dBFS"), Finding("snr", None, "dB")]
    start_s = float(np.flatnonzero(heard.speech)[0] / BLOCKS_A_SECOND)
    level = mean_level(heard.levels[heard.speech])
    snr = level - noise_level(heard)
    return [
        judge_value(
            "start", start_s, "s", start_s > MAX_START_S, "the recording begins with silence or noise: cut it off"
        ),
        judge_value(
            "level",
            level,
            "dBFS",
            level < MIN_LEVEL_DBFS,
            f"the voice is quiet (under {MIN_LEVEL_DBFS:g} dBFS; at {QUIET_DBFS:g} the mouth stays shut): "
            "make it louder",
        ),
        judge_value(
            "snr",
            snr,
            "dB",
            snr < MIN_SNR_DB,
            f"noise is {snr:.0f} dB below the voice ({MIN_SNR_DB:g} are wanted): record nearer to the mouth",
        ),
    ]
