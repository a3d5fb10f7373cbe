"""Gaussian diffusion as published (paper section 3.3): cosine schedule, noise prediction, dynamic threshold, samplers.

A data point x0 at time t is ``sqrt(a_t) x0 + sqrt(1 - a_t) noise`` with a_t = ``alphas_cumprod[t]``, t = 0 (hardly any noise)
to 999 (nothing but noise). Samplers take any callable that names the noise in x at time t and know no network. The dynamic
threshold takes one quantile of a whole clip, a coupling over time that belongs to the published model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dawn.errors import ConfigError

Epsilon = Callable[[Tensor, int], Tensor]
"""Predicts the noise in x (B, ...) at a time from 0 to 999; the result has the shape of x."""
Noise = torch.Generator | Sequence[Tensor]
"""Source of a sampler's noise: a generator, or one tensor a step, which repeats a known trajectory."""
Progress = Callable[[int], None]

FLOAT32_RANKS = 1 << 24
"""Largest count for which ``torch.quantile`` works: its ranks are float32, inexact beyond it."""
DPM_START = 980
"""First time that DPM-Solver++ asks the network for; 0.09 % of the variance is still data there."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The noise schedule and its derived coefficients, float32. Names are those of the published buffers."""

    betas: Float[Tensor, " steps"]
    alphas_cumprod: Float[Tensor, " steps"]
    alphas_cumprod_prev: Float[Tensor, " steps"]
    sqrt_alphas_cumprod: Float[Tensor, " steps"]
    sqrt_one_minus_alphas_cumprod: Float[Tensor, " steps"]
    log_one_minus_alphas_cumprod: Float[Tensor, " steps"]
    sqrt_recip_alphas_cumprod: Float[Tensor, " steps"]
    sqrt_recipm1_alphas_cumprod: Float[Tensor, " steps"]
    posterior_variance: Float[Tensor, " steps"]
    posterior_log_variance_clipped: Float[Tensor, " steps"]
    posterior_mean_coef1: Float[Tensor, " steps"]
    posterior_mean_coef2: Float[Tensor, " steps"]

    @property
    def steps(self) -> int:
        """Number of diffusion times."""
        return int(self.betas.shape[0])

    def add_noise(
        self, data: Float[Tensor, " B *rest"], noise: Float[Tensor, " B *rest"], time: Int[Tensor, " B"]
    ) -> Float[Tensor, " B *rest"]:
        """Mix data and noise as of each row's time: sqrt(a_t) data + sqrt(1 - a_t) noise."""
        return (
            _rows(self.sqrt_alphas_cumprod, time, data) * data
            + _rows(self.sqrt_one_minus_alphas_cumprod, time, data) * noise
        )

    def estimate_data(
        self, x: Float[Tensor, " B *rest"], noise: Float[Tensor, " B *rest"], time: Int[Tensor, " B"] | int
    ) -> Float[Tensor, " B *rest"]:
        """Take the noise out of x, which inverts ``add_noise``; ``time`` is one for all rows, or one a row."""
        if isinstance(time, int):
            return self.sqrt_recip_alphas_cumprod[time] * x - self.sqrt_recipm1_alphas_cumprod[time] * noise
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return _rows(recip, time, x) * x - _rows(recipm1, time, x) * noise


def _rows(values: Float[Tensor, " steps"], time: Int[Tensor, " B"], like: Float[Tensor, " B *rest"]) -> Tensor:
    """Pick one value a row, with axes of length one for the rest."""
    return values.to(like.device)[time].reshape(-1, *[1] * (like.dim() - 1))


def cosine_schedule(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.9999) -> NoiseSchedule:
    """Make the cosine schedule (Nichol and Dhariwal 2021, eq. 17), computed in float64 and rounded once.

    a_t = cos^2((t / steps + offset) / (1 + offset) pi / 2), over its value at t = 0
    """
    share = torch.linspace(0, steps, steps + 1, dtype=torch.float64) / steps
    level = torch.cos((share + offset) / (1 + offset) * math.pi * 0.5) ** 2
    level = level / level[0]
    betas = (1 - level[1:] / level[:-1]).clamp(0, max_beta)
    alphas = 1 - betas
    product = torch.cumprod(alphas, 0)
    previous = torch.cat((product.new_ones(1), product[:-1]))
    variance = betas * (1 - previous) / (1 - product)
    buffers = {
        "betas": betas,
        "alphas_cumprod": product,
        "alphas_cumprod_prev": previous,
        "sqrt_alphas_cumprod": product.sqrt(),
        "sqrt_one_minus_alphas_cumprod": (1 - product).sqrt(),
        "log_one_minus_alphas_cumprod": (1 - product).log(),
        "sqrt_recip_alphas_cumprod": (1 / product).sqrt(),
        "sqrt_recipm1_alphas_cumprod": (1 / product - 1).sqrt(),
        "posterior_variance": variance,
        "posterior_log_variance_clipped": variance.clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * previous.sqrt() / (1 - product),
        "posterior_mean_coef2": (1 - previous) * alphas.sqrt() / (1 - product),
    }
    return NoiseSchedule(**{name: value.float() for name, value in buffers.items()})


def linear_quantile(values: Float[Tensor, "B N"], quantile: float) -> Float[Tensor, " B"]:
    """Take a quantile of each row with linear interpolation: ``torch.quantile`` without its limit of 2^24 values.

    Values are float32 or float64, and finite.
    """
    count = values.shape[1]
    if count <= FLOAT32_RANKS:
        # The rank in the values' own precision, as torch.quantile has it, so that both agree to the last bit.
        rank = float(torch.tensor(quantile, dtype=values.dtype) * (count - 1))
    else:
        rank = quantile * (count - 1)
    below, above = math.floor(rank), math.ceil(rank)
    low = values.kthvalue(below + 1, dim=1).values
    high = low if above == below else values.kthvalue(above + 1, dim=1).values
    return torch.lerp(low, high, rank - below)


def dynamic_threshold(data: Float[Tensor, " B *rest"], quantile: float) -> Float[Tensor, " B *rest"]:
    """Clamp each row to a quantile of its |data| and scale that to 1, if it exceeds 1 (Saharia et al. 2022, section 2.3)."""
    size = data.flatten(1).abs()
    if not size.dtype.is_floating_point or size.dtype.itemsize < 4:
        size = size.float()
    limit = linear_quantile(size, quantile).clamp(min=1).to(data.dtype).reshape(-1, *[1] * (data.dim() - 1))
    return data.clamp(-limit, limit) / limit


def ddim_times(steps: int, total: int = 1000) -> list[tuple[int, int]]:
    """List (time, next time) of each network call as published.

    Times are evenly spread without the end, and rounded down; the last next time is 0.

    Raises:
        ConfigError: There are not as many different times.
    """
    if not 1 <= steps < total:
        raise ConfigError(f"{steps} DDIM steps: use 1 to {total - 1}")
    # float32, as published: the rounding decides where the quotient is whole.
    times = torch.linspace(0.0, total, steps + 2)[:-1].int().flip(0).tolist()
    return list(pairwise(times))


def ddim(  # noqa: PLR0913
    epsilon: Epsilon,
    start: Float[Tensor, " B *rest"],
    schedule: NoiseSchedule,
    steps: int,
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    shifted_alpha: bool = True,
    threshold_quantile: float | None = 0.9,
    progress: Progress | None = None,
) -> Float[Tensor, " B *rest"]:
    """Sample by DDIM (Song et al. 2021, eq. 12) as published.

        x <- sqrt(a_next) data + sqrt(1 - a_next - sigma^2) estimate + sigma noise

    The noise estimate is not computed anew from the thresholded data.

    Args:
        epsilon: Predicts the noise.
        start: Standard normal noise.
        schedule: The noise schedule.
        steps: Network calls.
        eta: 0 is deterministic, 1 as noisy as the ancestral sampler.
        noise: Needed if eta > 0. Item i of a sequence belongs to step i; the last step takes none.
        shifted_alpha: Move between the alphas of t - 1, while the data estimate uses that of t (a published quirk).
        threshold_quantile: For ``dynamic_threshold``; None leaves the data estimate as it is.
        progress: Called with the number of finished steps.

    Raises:
        ConfigError: The steps do not fit the schedule, or eta > 0 comes without noise.
    """
    pairs = ddim_times(steps, schedule.steps)
    if eta > 0 and noise is None and steps > 1:
        raise ConfigError(f"DDIM with eta {eta} draws noise: give a generator")
    levels = schedule.alphas_cumprod_prev if shifted_alpha else schedule.alphas_cumprod
    x = start
    for index, (time, following) in enumerate(pairs):
        estimate = epsilon(x, time)
        data = schedule.estimate_data(x, estimate, time)
        if threshold_quantile is not None:
            data = dynamic_threshold(data, threshold_quantile)
        if index + 1 == len(pairs):
            x = data
        else:
            level, next_level = levels[time], levels[following]
            sigma = eta * ((1 - level / next_level) * (1 - next_level) / (1 - level)).sqrt()
            direct = (1 - next_level - sigma**2).sqrt()
            x = data * next_level.sqrt() + direct * estimate
            if eta > 0:
                assert noise is not None
                x = x + sigma * _draw(noise, index, x)
        if progress:
            progress(index + 1)
    return x


def _draw(noise: Noise, index: int, like: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    if isinstance(noise, torch.Generator):
        drawn = torch.randn(like.shape, generator=noise, device=noise.device)
        return drawn.to(like.device, like.dtype)
    return noise[index].to(like.device, like.dtype)


def dpm_times(
    schedule: NoiseSchedule, steps: int, spacing: Literal["time", "logsnr"] = "logsnr", start_time: int = DPM_START
) -> list[int]:
    """List the falling times of the network calls: ``steps`` of them from ``start_time``; the next one would be 0.

    They are evenly spread in time or in the logarithm of sqrt(a / (1 - a)).

    Raises:
        ConfigError: Two times would be the same.
    """
    if spacing == "time":
        nodes = torch.linspace(start_time, 0, steps + 1, dtype=torch.float64).round().long()
    else:
        half_log_snr = 0.5 * torch.logit(schedule.alphas_cumprod.double())
        wanted = torch.linspace(float(half_log_snr[start_time]), float(half_log_snr[0]), steps + 1, dtype=torch.float64)
        nodes = (half_log_snr[None] - wanted[:, None]).abs().argmin(1)
    times: list[int] = nodes.tolist()
    if steps < 1 or any(later >= earlier for earlier, later in pairwise(times)):
        raise ConfigError(f"{steps} DPM-Solver++ steps spread evenly in {spacing}: use fewer, but at least one")
    return times[:-1]


def _level(schedule: NoiseSchedule, time: int) -> tuple[float, float, float]:
    """Return the scale of the data, the scale of the noise, and the logarithm of their ratio."""
    product = float(schedule.alphas_cumprod[time])
    alpha, sigma = math.sqrt(product), math.sqrt(1 - product)
    return alpha, sigma, math.log(alpha / sigma)


def dpm_solver(
    epsilon: Epsilon,
    start: Float[Tensor, " B *rest"],
    schedule: NoiseSchedule,
    steps: int,
    *,
    spacing: Literal["time", "logsnr"] = "logsnr",
    start_time: int = DPM_START,
    threshold_quantile: float | None = 0.9,
    progress: Progress | None = None,
) -> Float[Tensor, " B *rest"]:
    """Sample by DPM-Solver++(2M), deterministic (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

        x <- (sigma_next / sigma) x - alpha_next (exp(-step) - 1) slope

    With the same number of steps it comes nearer to the limit of many steps than DDIM (tests/test_paper_pipeline.py).
    The first step has no history and is of first order. The last one ends at the data estimate, the limit without noise.

    Args:
        epsilon: Predicts the noise.
        start: Standard normal noise.
        schedule: The noise schedule.
        steps: Network calls.
        spacing: As for ``dpm_times``.
        start_time: As for ``dpm_times``.
        threshold_quantile: For ``dynamic_threshold``; None leaves the data estimate as it is.
        progress: Called with the number of finished steps.

    Raises:
        ConfigError: The steps do not fit the schedule.
    """
    times = dpm_times(schedule, steps, spacing, start_time)
    x = start
    previous: tuple[Tensor, float] | None = None
    for index, time in enumerate(times):
        data = schedule.estimate_data(x, epsilon(x, time), time)
        if threshold_quantile is not None:
            data = dynamic_threshold(data, threshold_quantile)
        if index + 1 == len(times):
            x = data
        else:
            _, sigma, log_ratio = _level(schedule, time)
            next_alpha, next_sigma, next_log_ratio = _level(schedule, times[index + 1])
            step = next_log_ratio - log_ratio
            slope = data
            if previous is not None:
                last_data, last_step = previous
                slope = data + (data - last_data) * (step / (2 * last_step))
            x = (next_sigma / sigma) * x - next_alpha * math.expm1(-step) * slope
            previous = (data, step)
        if progress:
            progress(index + 1)
    return x
