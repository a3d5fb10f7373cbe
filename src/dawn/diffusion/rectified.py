"""Rectified flow (Liu et al. 2022; Lipman et al. 2022): straight paths from noise (t = 0) to data (t = 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def rectified_path(data: Tensor, noise: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
    """Point on the path and its velocity. data, noise: (B, T, K); time: (B,) in [0, 1]. Returns two (B, T, K)."""
    t = time[:, None, None]
    return torch.lerp(noise, data, t), data - noise


def data_estimate(point: Tensor, velocity: Tensor, time: Tensor) -> Tensor:
    """Where the path ends if its velocity stays: x + (1 - t) v."""
    return point + (1 - time[:, None, None]) * velocity


def draw_times(count: int, generator: torch.Generator, start_share: float = 0.3) -> Tensor:
    """Training times (count,): logit-normal (Esser et al. 2024, eq. 19); ``start_share`` of them uniform in [0, 0.2].

    Generation with few steps rests on its first one, which the logit-normal alone hardly trains.
    """
    times = torch.sigmoid(torch.randn(count, generator=generator))
    early = torch.rand(count, generator=generator) < start_share
    return torch.where(early, 0.2 * torch.rand(count, generator=generator), times)


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
