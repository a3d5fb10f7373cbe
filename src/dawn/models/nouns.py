"""Results that both model families speak of."""

from __future__ import annotations

from typing import NamedTuple

from jaxtyping import Float
from torch import Tensor


class Flow(NamedTuple):
    """Latent motion: where every cell comes from, and how far the source is kept there."""

    grid: Float[Tensor, "B h w 2"]
    """Absolute sampling grid in [-1, 1], (x, y)."""
    occlusion: Float[Tensor, "B 1 h w"]
    """1 keeps the source, 0 paints."""


class Posterior(NamedTuple):
    """One Gaussian a frame, with Z independent numbers."""

    mean: Float[Tensor, "B T Z"]
    log_variance: Float[Tensor, "B T Z"]


def kl_divergence(posterior: Posterior) -> Float[Tensor, "B T Z"]:
    """Measure how far each latent number is from the prior: KL(q || N(0, I))."""
    mean, log_variance = posterior
    return 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance)
