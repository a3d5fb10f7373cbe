"""Classifier-free guidance (Ho and Salimans 2022): the only place where it is computed."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor

Time = TypeVar("Time", int, float)


def guided(
    conditional: Callable[[Tensor, Time], Tensor], unconditional: Callable[[Tensor, Time], Tensor], strength: float
) -> Callable[[Tensor, Time], Tensor]:
    """Strengthen a prediction (velocity or noise): unconditional + strength x (conditional - unconditional).

    Strength 1 leaves the conditional prediction alone and never asks for the other.
    """
    if strength == 1:
        return conditional

    def predict(x: Tensor, time: Time) -> Tensor:
        base = unconditional(x, time)
        return base + strength * (conditional(x, time) - base)

    return predict
