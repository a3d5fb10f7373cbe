"""Samplers. Each takes the start and any callable that gives the velocity; none knows the network."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

Velocity = Callable[[Tensor, float], Tensor]
"""(x (B, T, K), time in [0, 1]) -> velocity (B, T, K)."""


def euler(velocity: Velocity, start: Tensor, steps: int, progress: Callable[[int], None] | None = None) -> Tensor:
    """First-order integration from noise at t = 0 to data at t = 1 in equal steps."""
    x = start
    for i in range(steps):
        x = x + velocity(x, i / steps) / steps
        if progress:
            progress(i + 1)
    return x


def heun(velocity: Velocity, start: Tensor, steps: int, progress: Callable[[int], None] | None = None) -> Tensor:
    """Second-order integration: each step averages the velocities at its two ends (Karras et al. 2022, algorithm 1)."""
    x = start
    for i in range(steps):
        slope = velocity(x, i / steps)
        guess = x + slope / steps
        x = x + 0.5 * (slope + velocity(guess, (i + 1) / steps)) / steps if i + 1 < steps else guess
        if progress:
            progress(i + 1)
    return x


def guided(conditional: Velocity, unconditional: Velocity, strength: float) -> Velocity:
    """Classifier-free guidance (Ho and Salimans 2022): unconditional + strength x (conditional - unconditional)."""
    if strength == 1:
        return conditional

    def velocity(x: Tensor, time: float) -> Tensor:
        base = unconditional(x, time)
        return base + strength * (conditional(x, time) - base)

    return velocity
