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
from torch import Tensor

from dawn.errors import ConfigError

Epsilon = Callable[[Tensor, int], Tensor]
"""(x (B, ...), time 0..999) -> the noise in x, of the same shape."""
Noise = torch.Generator | Sequence[Tensor]
"""Where a sampler's noise comes from: drawn, or given one tensor a step (to repeat a known trajectory)."""
Progress = Callable[[int], None]

FLOAT32_RANKS = 1 << 24
"""Up to this many values ``torch.quantile`` works; its ranks are float32, so beyond it they would be inexact."""
DPM_START = 980
"""First time asked of the network by DPM-Solver++: 0.09 % of the variance is still data."""


@dataclass(frozen=True)
class NoiseSchedule:
    """The schedule and what follows from it, each (steps,) float32; the names are those of the published buffers."""

    betas: Tensor
    alphas_cumprod: Tensor
    alphas_cumprod_prev: Tensor
    sqrt_alphas_cumprod: Tensor
    sqrt_one_minus_alphas_cumprod: Tensor
    log_one_minus_alphas_cumprod: Tensor
    sqrt_recip_alphas_cumprod: Tensor
    sqrt_recipm1_alphas_cumprod: Tensor
    posterior_variance: Tensor
    posterior_log_variance_clipped: Tensor
    posterior_mean_coef1: Tensor
    posterior_mean_coef2: Tensor

    @property
    def steps(self) -> int:
        return int(self.betas.shape[0])

    def noised(self, data: Tensor, noise: Tensor, time: Tensor) -> Tensor:
        """The point that training sees. data, noise: (B, ...); time: (B,) int64."""
        return (
            _rows(self.sqrt_alphas_cumprod, time, data) * data
            + _rows(self.sqrt_one_minus_alphas_cumprod, time, data) * noise
        )

    def data_from(self, x: Tensor, noise: Tensor, time: Tensor | int) -> Tensor:
        """The data that x would be without this noise. x, noise: (B, ...); time: one for all, or (B,) int64."""
        if isinstance(time, int):
            return self.sqrt_recip_alphas_cumprod[time] * x - self.sqrt_recipm1_alphas_cumprod[time] * noise
        recip, recipm1 = self.sqrt_recip_alphas_cumprod, self.sqrt_recipm1_alphas_cumprod
        return _rows(recip, time, x) * x - _rows(recipm1, time, x) * noise


def _rows(values: Tensor, time: Tensor, like: Tensor) -> Tensor:
    return values.to(like.device)[time].reshape(-1, *[1] * (like.dim() - 1))


def cosine_schedule(steps: int = 1000, offset: float = 0.008, max_beta: float = 0.9999) -> NoiseSchedule:
    """Cosine schedule (Nichol and Dhariwal 2021, eq. 17), computed in float64 and rounded once."""
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


def linear_quantile(values: Tensor, quantile: float) -> Tensor:
    """Quantile of each row with linear interpolation: ``torch.quantile`` without its limit of 2^24 values.

    values: (B, N) float32 or float64, finite. Returns (B,).
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


def dynamic_threshold(data: Tensor, quantile: float) -> Tensor:
    """Clamp to the given quantile of |data| and scale it to 1, where it exceeds 1 (Saharia et al. 2022, section 2.3).

    data: (B, ...); each row has its own threshold.
    """
    size = data.flatten(1).abs()
    if not size.dtype.is_floating_point or size.dtype.itemsize < 4:
        size = size.float()
    limit = linear_quantile(size, quantile).clamp(min=1).to(data.dtype).reshape(-1, *[1] * (data.dim() - 1))
    return data.clamp(-limit, limit) / limit


def ddim_times(steps: int, total: int = 1000) -> list[tuple[int, int]]:
    """(time, next time) of each network call as published: evenly spread without the end, rounded down, the last one to 0.

    Raises ConfigError when there are not as many different times.
    """
    if not 1 <= steps < total:
        raise ConfigError(f"{steps} DDIM steps: use 1 to {total - 1}")
    # float32, as published: the rounding decides where the quotient is whole.
    times = torch.linspace(0.0, total, steps + 2)[:-1].int().flip(0).tolist()
    return list(pairwise(times))


def ddim(
    epsilon: Epsilon,
    start: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    eta: float = 1.0,
    noise: Noise | None = None,
    shifted_alpha: bool = True,
    threshold_quantile: float | None = 0.9,
    progress: Progress | None = None,
) -> Tensor:
    """DDIM (Song et al. 2021, eq. 12) as published.

    start: (B, ...) standard normal. eta: 0 deterministic, 1 as noisy as the ancestral sampler. noise: needed if eta > 0; of a
    sequence, item i belongs to step i and the last step takes none. shifted_alpha: the published quirk of moving between the
    alphas of t - 1 while the data estimate uses that of t; without it the last step still ends at the estimate itself.
    threshold_quantile: None leaves the data estimate as it is. The noise estimate is not recomputed from the
    thresholded data. Raises ConfigError for steps that do not fit, or eta without noise.
    """
    pairs = ddim_times(steps, schedule.steps)
    if eta > 0 and noise is None and steps > 1:
        raise ConfigError(f"DDIM with eta {eta} draws noise: give a generator")
    levels = schedule.alphas_cumprod_prev if shifted_alpha else schedule.alphas_cumprod
    x = start
    for index, (time, following) in enumerate(pairs):
        estimate = epsilon(x, time)
        data = schedule.data_from(x, estimate, time)
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


def _draw(noise: Noise, index: int, like: Tensor) -> Tensor:
    if isinstance(noise, torch.Generator):
        drawn = torch.randn(like.shape, generator=noise, device=noise.device)
        return drawn.to(like.device, like.dtype)
    return noise[index].to(like.device, like.dtype)


def dpm_times(
    schedule: NoiseSchedule, steps: int, spacing: Literal["time", "logsnr"] = "logsnr", start_time: int = DPM_START
) -> list[int]:
    """Times of the network calls, falling: ``steps`` nodes from ``start_time``, the one after the last would be 0.

    Evenly spread in time or in the logarithm of sqrt(a / (1 - a)). Raises ConfigError when two would be the same.
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
    """Scale of the data, scale of the noise, and the logarithm of their ratio."""
    product = float(schedule.alphas_cumprod[time])
    alpha, sigma = math.sqrt(product), math.sqrt(1 - product)
    return alpha, sigma, math.log(alpha / sigma)


def dpm_solver(
    epsilon: Epsilon,
    start: Tensor,
    schedule: NoiseSchedule,
    steps: int,
    *,
    spacing: Literal["time", "logsnr"] = "logsnr",
    start_time: int = DPM_START,
    threshold_quantile: float | None = 0.9,
    progress: Progress | None = None,
) -> Tensor:
    """DPM-Solver++(2M), deterministic (Lu et al. 2022, arXiv 2211.01095, algorithm 2).

    In as many steps it comes nearer to the limit of many steps than DDIM does (tests/test_paper_pipeline.py).

    start: (B, ...) standard normal. The first step has no history and is of first order; the last one ends at the data
    estimate, the limit without noise. threshold_quantile: as for ``ddim``. Raises ConfigError for steps that do not fit.
    """
    times = dpm_times(schedule, steps, spacing, start_time)
    x = start
    previous: tuple[Tensor, float] | None = None
    for index, time in enumerate(times):
        data = schedule.data_from(x, epsilon(x, time), time)
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
