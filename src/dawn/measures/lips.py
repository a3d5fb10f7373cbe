"""Measures of lips against the true lips.

Landmarks are (T, 478, 2 or 3) face-mesh points in any unit with the same scale on every axis (pixels, crop units): every
length is divided by the distance between the outer eye corners, the "face scale". Where a function compares, generated
comes first, real second. Functions that end in ``_sums`` give one clip's part of a figure; the total over clips goes into
the function that the docstring names.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dawn.errors import InputError
from dawn.face import mesh as lm
from dawn.measures import lips

Array = NDArray[Any]
Float64Array = NDArray[np.float64]

MAX_LAG_FRAMES = 5
CLOSED_PERCENTILE = 5
CLOSED_MARGIN = 0.015
"""Eye distances by which lips may be apart and still count as closed."""
CLOSURE_TOLERANCE_FRAMES = 1


class Lag(NamedTuple):
    """frames: how much later the generated signal is (negative: earlier). correlation: the value at that shift."""

    frames: int
    correlation: float


def _distance(landmarks: Array, first: int, second: int) -> Float64Array:
    """(T, N, D) -> (T,) Euclidean distance between two landmarks."""
    return np.linalg.norm(landmarks[:, first].astype(np.float64) - landmarks[:, second], axis=-1)


def face_scale(landmarks: Array) -> Float64Array:
    """(T, 478, 2 or 3) -> (T,) distance of the outer eye corners. Raises: InputError if they coincide."""
    scale = _distance(landmarks, *lm.EYE_OUTER_CORNERS)
    if scale.min() <= 0:
        raise InputError("landmarks without extent: both eyes are at one point")
    return scale


def lip_aperture(landmarks: Array) -> Float64Array:
    """Mean gap of three inner-lip pairs over the face scale. (T, 478, 2 or 3) -> (T,); 0 is closed, 0.3 wide open.

    Lengths, not differences in y: turning or tilting the head then leaves it alone (with 3-D landmarks, exactly).
    """
    return np.mean([_distance(landmarks, *pair) for pair in lm.INNER_LIP_PAIRS], 0) / face_scale(landmarks)


def lip_width(landmarks: Array) -> Float64Array:
    """Distance of the lip corners over the face scale. (T, 478, 2 or 3) -> (T,)."""
    return _distance(landmarks, *lm.LIP_CORNERS) / face_scale(landmarks)


def landmark_error(generated: Array, real: Array, points: Sequence[int] | None = None) -> float:
    """Mean distance between landmarks in the picture plane over the real outer-eye-corner distance of that frame.

    (T, 478, 2 or 3) both; z is not used, trackers only guess it. points: only these landmarks, e.g. the lips'. 0.05 is
    one twentieth of the eyes' distance. Raises: InputError if the shapes differ.
    """
    if generated.shape != real.shape:
        raise InputError(f"cannot compare landmarks of shape {generated.shape} with {real.shape}")
    distances = np.linalg.norm(generated[..., :2].astype(np.float64) - real[..., :2], axis=-1)
    chosen = distances if points is None else distances[:, list(points)]
    return float((chosen.mean(1) / face_scale(real[..., :2])).mean())


def correlation_sums(generated: Array, real: Array) -> Float64Array:
    """One clip's part of a pooled Pearson correlation, for ``correlation``: sums of g r, g g, r r after each signal's own
    mean was taken away. (T,) both.

    A person's resting mouth thus counts for nothing, and a long clip for more than a short one.
    Raises: InputError if the lengths differ.
    """
    if len(generated) != len(real):
        raise InputError(f"signals do not fit: {len(generated)} and {len(real)} frames")
    a, b = (np.asarray(signal, np.float64) - np.mean(signal, dtype=np.float64) for signal in (generated, real))
    return np.array([a @ b, a @ a, b @ b])


def correlation(sums: Float64Array) -> float:
    """Pooled Pearson correlation from the total of ``correlation_sums``.

    0 if the generated signals never move; not a number if the real ones never do.
    """
    product, power_a, power_b = sums[:3]
    if power_b < 1e-20:
        return float("nan")
    return float(product / np.sqrt(power_a * power_b)) if power_a > 1e-20 else 0.0


def amplitude_ratio(sums: Float64Array) -> float:
    """Standard deviation of the generated signals over the real ones', pooled, from the total of ``correlation_sums``."""
    return float(np.sqrt(sums[1] / sums[2])) if sums[2] > 1e-20 else float("nan")


def lag_sums(generated: Array, real: Array, max_lag_frames: int = MAX_LAG_FRAMES) -> Float64Array:
    """``correlation_sums`` of one clip at every shift of -max_lag_frames .. max_lag_frames, flat, for ``best_lag``.

    Each shift is computed where both signals exist. Raises: InputError if the clip has not ``max_lag_frames`` + 2 frames.
    """
    if min(len(generated), len(real)) < max_lag_frames + 2:
        raise InputError(f"a clip of {len(real)} frames is too short for lags of {max_lag_frames} frames")
    rows = []
    for lag in range(-max_lag_frames, max_lag_frames + 1):
        late, early = max(lag, 0), max(-lag, 0)
        rows.append(correlation_sums(generated[late : len(generated) - early], real[early : len(real) - late]))
    return np.concatenate(rows)


def best_lag(sums: Float64Array) -> Lag:
    """The shift at which the pooled correlation is largest, from the total of ``lag_sums``; of equal ones, the smallest.

    ``Lag.frames`` > 0: the generated signal comes late, generated[t + lag] looks like real[t].
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
    """The aperture, in eye distances, at or below which this person's lips count as closed.

    The 5th percentile of the true ``lip_aperture`` over all of the person's clips, which is how the tracker sees their
    shut lips, plus 0.015 eye distances (about 1 mm). The same threshold serves the true and the generated frames.
    apertures: one (T,) a clip.
    """
    return float(np.percentile(np.concatenate(list(apertures)), CLOSED_PERCENTILE)) + CLOSED_MARGIN


def _near(flags: NDArray[np.bool_], tolerance: int) -> NDArray[np.bool_]:
    """True where a flag within ``tolerance`` frames is true."""
    padded = np.pad(flags, tolerance)
    return np.lib.stride_tricks.sliding_window_view(padded, 2 * tolerance + 1).max(1)


def closure_sums(generated: Array, real: Array, threshold: float) -> Float64Array:
    """One clip's closures: (true closed frames that ours meet, true closed frames, our closed frames that true ones meet,
    our closed frames). ``intervals.share`` of the first two is the recall, of the last two the precision.

    generated, real: (T,) ``lip_aperture``; closed is at or below ``threshold`` (``closed_threshold``). Two closed frames
    meet if they are at most one frame apart. A mouth that is always shut has a recall of 1 and, as precision, the share
    of frames around true closures. Raises: InputError if the lengths differ.
    """
    if len(generated) != len(real):
        raise InputError(f"signals do not fit: {len(generated)} and {len(real)} frames")
    ours, true = np.asarray(generated) <= threshold, np.asarray(real) <= threshold
    met = (true & _near(ours, CLOSURE_TOLERANCE_FRAMES)).sum()
    meeting = (ours & _near(true, CLOSURE_TOLERANCE_FRAMES)).sum()
    return np.array([met, true.sum(), meeting, ours.sum()], np.float64)


def pooled_std(signals: Sequence[np.ndarray]) -> float:
    """Standard deviation over the frames of all clips, each clip's mean taken away."""
    total = sum(lips.correlation_sums(signal, signal)[1] for signal in signals)
    return float(np.sqrt(total / sum(map(len, signals))))
