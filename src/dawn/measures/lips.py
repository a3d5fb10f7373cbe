"""Measures of lips against the true lips.

Landmarks are (T, 478, 2 or 3) face-mesh points in any unit with one scale for all axes (pixels, crop units). Every
length is divided by the distance between the outer eye corners, the "face scale". Where a function compares, generated
comes first, real second. Functions that end in ``_sums`` give one clip's part of a figure: their total over clips goes
into the function that the docstring names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dawn.errors import InputError
from dawn.face import mesh as lm

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

MAX_LAG_FRAMES = 5
CLOSED_PERCENTILE = 5
CLOSED_MARGIN = 0.015
"""Eye distances that lips may be apart and still count as closed."""
CLOSURE_TOLERANCE_FRAMES = 1


class Lag(NamedTuple):
    """The shift at which two signals agree best.

    frames: how much later the generated signal is (negative: earlier). correlation: the value at that shift.
    """

    frames: int
    correlation: float


def _distance(landmarks: Array, first: int, second: int) -> Float64Array:
    """Measure the Euclidean distance between two landmarks of (T, N, D): (T,)."""
    return np.linalg.norm(landmarks[:, first].astype(np.float64) - landmarks[:, second], axis=-1)


def face_scale(landmarks: Array) -> Float64Array:
    """Measure the distance of the outer eye corners: (T, 478, 2 or 3) -> (T,).

    Raises:
        InputError: They coincide.
    """
    scale = _distance(landmarks, *lm.EYE_OUTER_CORNERS)
    if scale.min() <= 0:
        raise InputError("landmarks without extent: both eyes are at one point")
    return scale


def lip_distance(landmarks: Array) -> Float64Array:
    """Measure the mean length between three inner-lip pairs over the face scale: (T, 478, 2 or 3) -> (T,).

    0 is closed, 0.3 wide open. A length does not change when the head turns or tilts (exactly so with 3-D landmarks),
    so it fits tracked faces. ``face.geometry.lip_aperture`` is the signed vertical gap of shapes without pose.
    """
    return np.mean([_distance(landmarks, *pair) for pair in lm.INNER_LIP_PAIRS], 0) / face_scale(landmarks)


def lip_width(landmarks: Array) -> Float64Array:
    """Measure the distance of the lip corners over the face scale: (T, 478, 2 or 3) -> (T,)."""
    return _distance(landmarks, *lm.LIP_CORNERS) / face_scale(landmarks)


def landmark_error(generated: Array, real: Array, points: Sequence[int] | None = None) -> float:
    """Measure the mean distance between landmarks in the picture plane, over the real face scale of each frame.

    0.05 is a twentieth of the distance of the eyes. z is not used, since trackers only guess it.

    Args:
        generated: (T, 478, 2 or 3).
        real: the same shape.
        points: only these landmarks, such as the lips'.

    Raises:
        InputError: The shapes differ.
    """
    if generated.shape != real.shape:
        raise InputError(f"cannot compare landmarks of shape {generated.shape} with {real.shape}")
    distances = np.linalg.norm(generated[..., :2].astype(np.float64) - real[..., :2], axis=-1)
    chosen = distances if points is None else distances[:, list(points)]
    return float((chosen.mean(1) / face_scale(real[..., :2])).mean())


def correlation_sums(generated: Array, real: Array) -> Float64Array:
    """Sum up one clip's signals (T,) for ``correlation``: sums of g r, g g, r r without each signal's own mean.

    A person's resting mouth thus counts for nothing, and a long clip for more than a short one.

    Raises:
        InputError: The lengths differ.
    """
    if len(generated) != len(real):
        raise InputError(f"signals do not fit: {len(generated)} and {len(real)} frames")
    a, b = (np.asarray(signal, np.float64) - np.mean(signal, dtype=np.float64) for signal in (generated, real))
    return np.array([a @ b, a @ a, b @ b])


def correlation(sums: Float64Array) -> float:
    """Compute the pooled Pearson correlation from the total of ``correlation_sums``.

    It is 0 if the generated signals never move; not a number if the real ones never do.
    """
    product, power_a, power_b = sums[:3]
    if power_b < 1e-20:
        return float("nan")
    return float(product / np.sqrt(power_a * power_b)) if power_a > 1e-20 else 0.0


def amplitude_ratio(sums: Float64Array) -> float:
    """Divide the generated signals' pooled standard deviation by the real ones': total of ``correlation_sums``."""
    return float(np.sqrt(sums[1] / sums[2])) if sums[2] > 1e-20 else float("nan")


def lag_sums(generated: Array, real: Array, max_lag_frames: int = MAX_LAG_FRAMES) -> Float64Array:
    """Sum up one clip's signals (T,) for ``best_lag``: ``correlation_sums`` at every shift, flat.

    Shifts run from -max_lag_frames to max_lag_frames. Each is computed where both signals exist.

    Raises:
        InputError: The clip has under ``max_lag_frames`` + 2 frames.
    """
    if min(len(generated), len(real)) < max_lag_frames + 2:
        raise InputError(f"a clip of {len(real)} frames is too short for lags of {max_lag_frames} frames")
    rows = []
    for lag in range(-max_lag_frames, max_lag_frames + 1):
        late, early = max(lag, 0), max(-lag, 0)
        rows.append(correlation_sums(generated[late : len(generated) - early], real[early : len(real) - late]))
    return np.concatenate(rows)


def best_lag(sums: Float64Array) -> Lag:
    """Find the shift of the largest pooled correlation from the total of ``lag_sums``.

    Above 0 the generated signal is late: generated[t + lag] looks like real[t]. On a tie the smallest shift wins.
    """
    rows = sums.reshape(-1, 3)
    reach = len(rows) // 2
    best = Lag(0, correlation(rows[reach]))
    for lag in sorted(range(-reach, reach + 1), key=abs):
        value = correlation(rows[lag + reach])
        if value > best.correlation + 1e-12:
            best = Lag(lag, value)
    return best


def closed_threshold(apertures: Sequence[Array]) -> float:
    """Find the ``lip_distance`` at or below which a person's lips count as closed.

    It is the 5th percentile over all of the person's true clips, plus 0.015 eye distances (about 1 mm). The percentile
    shows how the tracker sees their shut lips. True and generated frames share one threshold.

    Args:
        apertures: ``lip_distance`` (T,) of each clip.
    """
    return float(np.percentile(np.concatenate(list(apertures)), CLOSED_PERCENTILE)) + CLOSED_MARGIN


def _widen(flags: NDArray[np.bool_], tolerance: int) -> NDArray[np.bool_]:
    """Set every flag (T,) that lies within ``tolerance`` frames of a true one."""
    padded = np.pad(flags, tolerance)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * tolerance + 1).max(1)


def closure_sums(generated: Array, real: Array, threshold: float) -> Float64Array:
    """Count one clip's closures. Two closed frames meet if they are at most one frame apart.

    A mouth that is always shut has a recall of 1. Its precision is the share of frames around true closures.

    Args:
        generated: ``lip_distance`` (T,).
        real: the same length.
        threshold: closed is at or below it, see ``closed_threshold``.

    Returns:
        (true closed frames that generated ones meet, true closed frames, generated closed frames that true ones meet,
        generated closed frames). ``intervals.share`` of the first two is the recall, of the last two the precision.

    Raises:
        InputError: The lengths differ.
    """
    if len(generated) != len(real):
        raise InputError(f"signals do not fit: {len(generated)} and {len(real)} frames")
    ours, true = np.asarray(generated) <= threshold, np.asarray(real) <= threshold
    met = (true & _widen(ours, CLOSURE_TOLERANCE_FRAMES)).sum()
    meeting = (ours & _widen(true, CLOSURE_TOLERANCE_FRAMES)).sum()
    return np.array([met, true.sum(), meeting, ours.sum()], np.float64)


def pooled_std(signals: Sequence[Array]) -> float:
    """Compute the standard deviation over the frames of all clips (T,), without each clip's own mean."""
    total = sum(correlation_sums(signal, signal)[1] for signal in signals)
    return float(np.sqrt(total / sum(map(len, signals))))
