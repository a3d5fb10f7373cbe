"""Rectified flow (Liu et al. 2022; Lipman et al. 2022): straight paths from noise (t = 0) to data (t = 1)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor


def rectified_path(
    data: Float[Tensor, "B T K"], noise: Float[Tensor, "B T K"], time: Float[Tensor, " B"]
) -> tuple[Float[Tensor, "B T K"], Float[Tensor, "B T K"]]:
    """Find the point on the path at a time in [0, 1], and its velocity.

    x_t = (1 - t) noise + t data,    v = data - noise
    """
    t = time[:, None, None]
    return torch.lerp(noise, data, t), data - noise


def data_estimate(
    point: Float[Tensor, "B T K"], velocity: Float[Tensor, "B T K"], time: Float[Tensor, " B"]
) -> Float[Tensor, "B T K"]:
    """Estimate where the path ends if its velocity stays: x + (1 - t) v."""
    return point + (1 - time[:, None, None]) * velocity


def draw_times(count: int, generator: torch.Generator, start_share: float = 0.3) -> Float[Tensor, " {count}"]:
    """Draw training times: logit-normal (Esser et al. 2024, eq. 19), and ``start_share`` of them uniform in [0, 0.2].

    Generation in few steps depends most on its first step. The logit-normal alone hardly trains it.
    """
    times = torch.sigmoid(torch.randn(count, generator=generator))
    early = torch.rand(count, generator=generator) < start_share
    return torch.where(early, 0.2 * torch.rand(count, generator=generator), times)


Velocity = Callable[[Tensor, float], Tensor]
"""(x (B, T, K), time in [0, 1]) -> velocity (B, T, K)."""


def euler(
    velocity: Velocity, start: Float[Tensor, "B T K"], steps: int, progress: Callable[[int], None] | None = None
) -> Float[Tensor, "B T K"]:
    """Integrate from noise at t = 0 to data at t = 1 in equal first-order steps.

        x <- x + v(x, t) / steps

    Args:
        velocity: Any callable; it knows the network, guidance and chunks.
        start: Noise.
        steps: Calls of ``velocity``.
        progress: Called with the number of finished steps.
    """
    x = start
    for i in range(steps):
        x = x + velocity(x, i / steps) / steps
        if progress:
            progress(i + 1)
    return x
