"""How sure is a figure? Figures of many clips, and their bootstrap intervals.

Every measure is written as a few sums a clip and one function of the total: a mean is (value, 1) and their ratio, a pooled
correlation is three sums of products. Drawing clips again is then a matter of adding other rows.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dawn.errors import InputError

Float64Array = NDArray[np.float64]
Finish = Callable[[Float64Array], float]
"""The total of the clips' sums (k,) -> the figure; not a number where there is nothing to go by."""


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def share(sums: Float64Array) -> float:
    """First sum over second: the mean of (value, 1), a rate of (events, seconds), a ratio of (generated, real)."""
    return float(sums[0] / sums[1]) if sums[1] > 0 else float("nan")


def bootstrap_interval(
    sums: NDArray[Any], finish: Finish, rng: np.random.Generator, confidence: float = 0.95, rounds: int = 1000
) -> Interval:
    """Percentile bootstrap over clips (frames of one clip are not independent).

    sums: (N, k), one row a clip. ``rounds`` times N clips are drawn with replacement and ``finish`` is taken of their
    total; draws in which it is not a number are left out. Raises: InputError if N is under 2.
    """
    sums = np.asarray(sums, np.float64)
    if sums.ndim != 2 or len(sums) < 2:
        raise InputError(f"an interval needs at least 2 clips, got sums of shape {sums.shape}")
    drawn = rng.multinomial(len(sums), np.full(len(sums), 1 / len(sums)), rounds)
    values = np.array([finish(total) for total in drawn @ sums])
    values = values[~np.isnan(values)]
    if len(values) == 0:
        return Interval(float("nan"), float("nan"))
    low, high = np.percentile(values, [50 * (1 - confidence), 50 * (1 + confidence)])
    return Interval(float(low), float(high))
