"""Classifier-free guidance (Ho and Salimans 2022), the only one: both engines, any kind of prediction."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec

from jaxtyping import Float
from torch import Tensor

Inputs = ParamSpec("Inputs")


def guide(
    conditional: Float[Tensor, "*shape"], unconditional: Float[Tensor, "*shape"], strength: float
) -> Float[Tensor, "*shape"]:
    """Move a prediction away from what the network says without the condition.

    Works for velocities and for noise alike.

    Args:
        conditional: Prediction under the condition.
        unconditional: Prediction without it.
        strength: 0 ignores the condition, 1 leaves the prediction as it is, more exaggerates the condition.

    Returns:
        unconditional + strength x (conditional - unconditional).
    """
    return unconditional + strength * (conditional - unconditional)


def guided(
    conditional: Callable[Inputs, Tensor], unconditional: Callable[Inputs, Tensor], strength: float
) -> Callable[Inputs, Tensor]:
    """Make one prediction of two, for a sampler.

    Both are asked for each step, unless ``strength`` is 1: then the unconditional one is never called.
    """
    if strength == 1:
        return conditional

    def predict(*args: Inputs.args, **kwargs: Inputs.kwargs) -> Tensor:
        return guide(conditional(*args, **kwargs), unconditional(*args, **kwargs), strength)

    return predict
