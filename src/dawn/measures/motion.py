"""Measures of how head, eyes and picture move.

Shapes are landmarks without pose (``face.geometry.remove_pose``): (T, 478, 2 or 3) in the frame of the mean face. Its
outer eye corners are one unit apart. Angles are (T, 3) yaw, pitch and roll in degrees. All at ``structs.FPS``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from dawn.errors import InputError
from dawn.face.geometry import POSE_SMOOTHING_FRAMES, smooth
from dawn.measures.picture import luma, to_pixels
from dawn.structs import FPS, SPEECH_RATE_HZ

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

EYE_CLOSED_SHARE = 0.6
EYE_OPEN_PERCENTILE = 90
LONGEST_BLINK_S = 0.5

FACE_MARGIN = 0.1
"""Width added around the mesh's bounding box on every side before the rest counts as background."""
MIN_BACKGROUND_SHARE = 0.05

BEAT_SIGMA_S = 0.1
ONSET_HOP = SPEECH_RATE_HZ // 100
ONSET_WINDOW = 512
ONSET_DISTANCE_S = 0.1
ONSET_FLOOR_DB = 60.0


def jitter(shape: Array) -> float:
    """Measure how a face itself trembles: shapes (T, 478, 2 or 3) -> squared eye distances.

    It is a sixth of the mean squared second difference over time, in the picture plane. Steady motion gives 0. White
    noise of standard deviation s per coordinate gives s^2, as its second difference has variance 6 s^2. Speech itself
    is not 0: compare with a real clip.

    Raises:
        InputError: There are under 3 frames.
    """
    if len(shape) < 3:
        raise InputError(f"jitter needs 3 frames, got {len(shape)}")
    return float((np.diff(shape[..., :2].astype(np.float64), 2, axis=0) ** 2).mean() / 6)


def background(landmarks: Sequence[Array], size_px: int) -> NDArray[np.bool_]:
    """Mark the pixels (size_px, size_px) outside the face in every frame of all clips.

    The face is the mesh's bounding box over all frames, grown on every side by a tenth of its width. Hair, neck and
    shoulders remain, and move with a real head.

    Args:
        landmarks: (T, 478, 2 or 3) in crop units, for each clip.
        size_px: side of the picture.
    """
    points = np.concatenate([to_pixels(side[..., :2].reshape(-1, 2), size_px) for side in landmarks])
    (x0, y0), (x1, y1) = points.min(0), points.max(0)
    margin = FACE_MARGIN * (x1 - x0)
    centres = np.arange(size_px) + 0.5
    inside_x = (centres > x0 - margin) & (centres < x1 + margin)
    inside_y = (centres > y0 - margin) & (centres < y1 + margin)
    return ~(inside_y[:, None] & inside_x[None])


def flicker(frames: Array, where: NDArray[np.bool_]) -> float:
    """Measure the mean squared change of the luma from frame to frame over the pixels ``where`` (H, W).

    Frames are (T, H, W, 3), uint8 or in [0, 1]. Not a number if ``where`` has under a twentieth of the picture.

    Raises:
        InputError: There are under 2 frames.
    """
    if len(frames) < 2:
        raise InputError(f"flicker needs 2 frames, got {len(frames)}")
    if where.mean() < MIN_BACKGROUND_SHARE:
        return float("nan")
    return float((np.diff(luma(frames)[:, where], axis=0) ** 2).mean())


def find_runs(flags: NDArray[np.bool_]) -> NDArray[np.int_]:
    """Find every stretch of flags (T,) that is true: [start, stop) as (N, 2)."""
    return np.flatnonzero(np.diff(np.pad(flags, 1).astype(np.int8))).reshape(-1, 2)


def blink_count(ear: Array, fps: float = FPS) -> int:
    """Count the blinks in a clip of eye aspect ratios (T,), in any unit.

    The eye is closed where the ratio is under 0.6 of its open level (the clip's 90th percentile). A blink is a closed
    stretch of at most 0.5 s with open frames before and after it.

    Raises:
        InputError: There are no frames.
    """
    if len(ear) == 0:
        raise InputError("no frames to count blinks in")
    closed = np.asarray(ear) < EYE_CLOSED_SHARE * np.percentile(ear, EYE_OPEN_PERCENTILE)
    change = np.diff(closed.astype(int))
    starts, ends = np.flatnonzero(change == 1), np.flatnonzero(change == -1)
    if closed[0]:
        ends = ends[1:]
    return sum(int(end - start <= LONGEST_BLINK_S * fps) for start, end in zip(starts, ends, strict=False))


def _smooth_angles(angles_deg: Array) -> Float64Array:
    return smooth(torch.from_numpy(np.ascontiguousarray(angles_deg, np.float64)), POSE_SMOOTHING_FRAMES).numpy()


def angular_speed(angles_deg: Array) -> Float64Array:
    """Measure the head's speed in degrees per second between frames: angles (T, 3) -> (T - 1,).

    It is the length of the change of all three. Angles are smoothed over 1.2 frames first, as the tracker trembles.
    """
    return np.linalg.norm(np.diff(_smooth_angles(angles_deg), axis=0), axis=1) * FPS


def pose_range(angles_deg: Array) -> float:
    """Measure the largest minus the smallest angle (T, 3) of a clip, mean of yaw, pitch and roll, in degrees.

    Angles are smoothed as in ``angular_speed``.
    """
    return float(np.ptp(_smooth_angles(angles_deg), axis=0).mean())


def pose_beats(angles_deg: Array) -> Float64Array:
    """Find the moments at which the head moves fastest: angles (T, 3) -> (N,) seconds from the first frame.

    They are the local maxima of ``angular_speed`` above its mean over the clip.
    """
    speed = angular_speed(angles_deg)
    peaks = np.flatnonzero((speed[1:-1] > speed[:-2]) & (speed[1:-1] >= speed[2:]) & (speed[1:-1] > speed.mean())) + 1
    return (peaks + 0.5) / FPS


def audio_onsets(samples: Array, rate_hz: int = SPEECH_RATE_HZ) -> Float64Array:
    """Find the moments at which sound sets in: samples (L,) -> (N,) seconds. Silence has none.

    They are peaks of the spectral flux: how much the log magnitude spectrum rises, mean over frequencies. The spectrum
    has a Hann window of 512 samples every 10 ms, and a floor 60 dB below its loudest bin. A peak is a local maximum
    above the mean plus half a standard deviation, over 0.1 s from any larger one.
    """
    samples = np.asarray(samples, np.float64)
    if len(samples) < ONSET_WINDOW + 3 * ONSET_HOP or not np.any(samples):
        return np.zeros(0)
    windows = np.lib.stride_tricks.sliding_window_view(samples, ONSET_WINDOW)[::ONSET_HOP]
    magnitude = np.abs(np.fft.rfft(windows * np.hanning(ONSET_WINDOW), axis=1))
    floor = magnitude.max() * 10 ** (-ONSET_FLOOR_DB / 20)
    flux = np.diff(np.log(np.maximum(magnitude, floor)), axis=0).clip(0).mean(1)
    inner = flux[1:-1]
    peaks = np.flatnonzero((inner > flux[:-2]) & (inner >= flux[2:]) & (inner > flux.mean() + 0.5 * flux.std())) + 1
    kept: list[int] = []
    for peak in sorted(peaks.tolist(), key=lambda index: -flux[index]):
        if all(abs(peak - other) * ONSET_HOP >= ONSET_DISTANCE_S * rate_hz for other in kept):
            kept.append(peak)
    # The rise lies between the middles of two windows.
    return (np.array(sorted(kept)) * ONSET_HOP + (ONSET_WINDOW + ONSET_HOP) / 2) / rate_hz


def beat_sums(beats_s: Array, onsets_s: Array, sigma_s: float = BEAT_SIGMA_S) -> Float64Array:
    """Sum up one clip's beat alignment; ``intervals.share`` of the total is the score, 0 to 1.

    It follows the beat alignment score of dance (Li et al., "AI Choreographer", ICCV 2021). Peaks of head speed stand
    for kinematic beats, onsets of sound for musical ones. Random beats also score: compare with another clip's sound.

    Args:
        beats_s: ``pose_beats`` (N,).
        onsets_s: ``audio_onsets`` (M,).
        sigma_s: how far apart beat and onset may lie.

    Returns:
        (sum over beats of exp(-d^2 / (2 sigma^2)), number of beats); d is the time to the nearest onset.
    """
    if len(beats_s) == 0 or len(onsets_s) == 0:
        return np.zeros(2)
    distance = np.abs(np.asarray(beats_s)[:, None] - np.asarray(onsets_s)[None]).min(1)
    return np.array([np.exp(-(distance**2) / (2 * sigma_s**2)).sum(), len(beats_s)])
