"""Classifier-free guidance."""

from __future__ import annotations

from torch import Tensor

from dawn.diffusion.rectified import Velocity


def guided(conditional: Velocity, unconditional: Velocity, strength: float) -> Velocity:
    """Classifier-free guidance (Ho and Salimans 2022): unconditional + strength x (conditional - unconditional)."""
    if strength == 1:
        return conditional

    def velocity(x: Tensor, time: float) -> Tensor:
        base = unconditional(x, time)
        return base + strength * (conditional(x, time) - base)

    return velocity
