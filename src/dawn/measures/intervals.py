"""How sure is a figure? Figures of many clips, and their bootstrap intervals.

Every measure is a few sums per clip and one function of their total. A mean sums (value, 1) and takes the ratio; a
pooled correlation sums three products. To draw clips again, other rows are added up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dawn.errors import InputError

Float64Array = NDArray[np.float64]
Finish = Callable[[Float64Array], float]
"""Turns the total of the clips' sums (k,) into the figure; not a number where nothing was measured."""


class Interval(NamedTuple):
    """Bounds of a confidence interval."""

    low: float
    high: float


def share(sums: Float64Array) -> float:
    """Divide the first sum by the second; not a number if that is 0.

    It is the mean of (value, 1), the rate of (events, seconds), the ratio of (generated, real).
    """
    return float(sums[0] / sums[1]) if sums[1] > 0 else float("nan")


def bootstrap_interval(
    sums: NDArray[Any], finish: Finish, rng: np.random.Generator, confidence: float = 0.95, rounds: int = 1000
) -> Interval:
    """Bootstrap a confidence interval over clips, as frames of one clip are not independent.

    N clips are drawn with replacement, ``rounds`` times; the bounds are percentiles of the figures drawn. Draws whose
    figure is not a number are left out.

    Args:
        sums: (N, k), one row per clip.
        finish: computes the figure from the total of the rows.
        rng: source of the draws.
        confidence: share of the figures between the bounds.
        rounds: number of draws.

    Raises:
        InputError: N is under 2.
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
