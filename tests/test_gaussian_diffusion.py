"""Gaussian diffusion: the published buffers, times and trajectory, and samplers on data with a known answer."""

from __future__ import annotations

import dataclasses
import itertools
import math

import pytest
import torch
from torch import Tensor

from dawn.diffusion import gaussian
from dawn.diffusion.gaussian import (
    cosine_schedule,
    ddim,
    ddim_times,
    dpm_solver,
    dpm_times,
    dynamic_threshold,
    linear_quantile,
)
from dawn.errors import ConfigError
from official import parity, relative_error

SCHEDULE = cosine_schedule()
MEAN, SPREAD = 0.3, 0.5


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_buffers_are_the_published_ones() -> None:
    true = parity("schedule")
    for field in dataclasses.fields(SCHEDULE):
        made = getattr(SCHEDULE, field.name)
        assert made.dtype == torch.float32
        torch.testing.assert_close(made, true[field.name], rtol=1.2e-7, atol=0, msg=field.name)


@pytest.mark.parametrize("steps", [5, 20, 50])
def test_ddim_times_are_the_published_ones(steps: int) -> None:
    true = parity("schedule")
    pairs = zip(true[f"ddim_time_{steps}"].tolist(), true[f"ddim_time_next_{steps}"].tolist(), strict=True)
    assert ddim_times(steps) == list(pairs)


def test_noising_and_its_inverse() -> None:
    data, noise = torch.randn(2, 3, 2, 5, generator=seeded(0))
    time = torch.tensor([0, 400, 900])
    point = SCHEDULE.noised(data, noise, time)
    share = parity("schedule")["alphas_cumprod"][400]
    torch.testing.assert_close(point[1], share.sqrt() * data[1] + (1 - share).sqrt() * noise[1])
    torch.testing.assert_close(SCHEDULE.data_from(point, noise, time), data, atol=1e-5, rtol=0)
    torch.testing.assert_close(SCHEDULE.data_from(point[1:2], noise[1:2], 400), data[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 7, 24_576, 300_001])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_quantile_equals_torch(count: int, dtype: torch.dtype) -> None:
    values = torch.randn(2, count, generator=seeded(count)).to(dtype)
    for quantile in (0.0, 0.37, 0.9, 0.995, 1.0):
        assert torch.equal(linear_quantile(values, quantile), torch.quantile(values, quantile, dim=1))


def test_quantile_has_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gaussian, "FLOAT32_RANKS", 10)  # as if 1001 values were too many for torch.quantile
    values = torch.arange(1001.0)[torch.randperm(1001, generator=seeded(0))][None]
    assert float(linear_quantile(values, 0.9)) == pytest.approx(900, abs=1e-3)
    assert float(linear_quantile(values, 0.8985)) == pytest.approx(898.5, abs=1e-3)


def test_dynamic_threshold() -> None:
    data = torch.stack((0.2 * torch.ones(3, 40), torch.linspace(-4, 4, 120).reshape(3, 40)))
    made = dynamic_threshold(data, 0.9)
    assert torch.equal(made[0], data[0])
    limit = torch.quantile(data[1].abs(), 0.9)
    assert torch.equal(made[1], data[1].clamp(-limit, limit) / limit)
    assert int((made[1].abs() == 1).sum()) == 12


def test_ddim_repeats_the_published_trajectory() -> None:
    """The noise estimates are solved from the stored trajectory by the paper's formula; given them, the sampler repeats it."""
    true, buffers = parity("e2e_128_t8_s5"), {k: v.double() for k, v in parity("schedule").items()}
    points, noises = true["x_t"], true["noise"]
    shifted, product = buffers["alphas_cumprod_prev"], buffers["alphas_cumprod"]
    estimates = []
    times = [*buffers["ddim_time_5"].long().tolist(), 0]
    for index, (time, following) in enumerate(itertools.pairwise(times[:-1])):
        level, after = shifted[time], shifted[following]
        sigma = ((1 - level / after) * (1 - after) / (1 - level)).sqrt()
        direct = (1 - after - sigma**2).sqrt()
        x, rest = points[index].double(), points[index + 1].double() - sigma * noises[index].double()
        scale_x, scale_e = (1 / product[time]).sqrt(), (1 / product[time] - 1).sqrt()
        limit = torch.tensor(1.0, dtype=torch.float64)
        for _ in range(200):  # the threshold depends on the estimate that is wanted: find where both agree
            inside = (rest - after.sqrt() * scale_x * x / limit) / (direct - after.sqrt() * scale_e / limit)
            sign = torch.sign(scale_x * x - scale_e * inside)
            clamped = (rest - sign * after.sqrt()) / direct
            estimate = torch.where((scale_x * x - scale_e * inside).abs() > limit, clamped, inside)
            limit = (0.5 * limit + 0.5 * torch.quantile((scale_x * x - scale_e * estimate).abs(), 0.9)).clamp(min=1)
        # The network did not know the noise of its own step; a wrong sigma would leave some of it in the estimate.
        match = torch.corrcoef(torch.stack((estimate.flatten(), noises[index].double().flatten())))[0, 1]
        assert abs(float(match)) < 0.03
        estimates.append(estimate.float())
    # The last call's estimate: whatever leads to the stored result, which is in [-1, 1] and whose tenth is clamped.
    final = torch.cat((true["grid"], 2 * true["conf"] - 1), 1)
    assert float((final.abs() > 1 - 1e-6).double().mean()) == pytest.approx(0.1, abs=2e-3)
    seen: list[Tensor] = []

    def epsilon(x: Tensor, time: int) -> Tensor:
        assert time == times[len(seen)]
        seen.append(x)
        if len(seen) <= len(estimates):
            return estimates[len(seen) - 1]
        last = SCHEDULE.data_from(x, torch.zeros_like(x), time) - 1.7 * final
        return last / SCHEDULE.sqrt_recipm1_alphas_cumprod[time]

    made = ddim(epsilon, true["noise0"], SCHEDULE, 5, eta=1.0, noise=list(noises))
    for index in range(5):
        assert relative_error(seen[index], points[index]) < 1e-4, index
    assert relative_error(made, final) < 1e-4


def gaussian_epsilon(x: Tensor, time: int) -> Tensor:
    """The best guess of the noise when data are N(MEAN, SPREAD^2)."""
    share = float(SCHEDULE.alphas_cumprod[time])
    return math.sqrt(1 - share) * (x - math.sqrt(share) * MEAN) / (share * SPREAD**2 + 1 - share)


def exact(start: Tensor, time: int) -> Tensor:
    """Where the deterministic flow leads from a start at this time: the standardised position is kept."""
    share = float(SCHEDULE.alphas_cumprod[time])
    return MEAN + SPREAD * (start - math.sqrt(share) * MEAN) / math.sqrt(share * SPREAD**2 + 1 - share)


START = torch.linspace(-2, 2, 9, dtype=torch.float64).reshape(1, 9)


def ddim_error(steps: int) -> float:
    made = ddim(gaussian_epsilon, START, SCHEDULE, steps, eta=0, shifted_alpha=False, threshold_quantile=None)
    return float((made - exact(START, ddim_times(steps)[0][0])).abs().max())


def dpm_error(steps: int, spacing: str = "time") -> float:
    made = dpm_solver(gaussian_epsilon, START, SCHEDULE, steps, spacing=spacing, threshold_quantile=None)  # type: ignore[arg-type]
    return float((made - exact(START, gaussian.DPM_START)).abs().max())


def test_dpm_solver_converges_faster_than_ddim() -> None:
    assert math.log2(ddim_error(40) / ddim_error(80)) == pytest.approx(1, abs=0.3)
    assert math.log2(dpm_error(20) / dpm_error(40)) > 1.5
    assert ddim_error(320) < 0.01
    for steps in (6, 8, 10):
        assert dpm_error(steps) < 0.6 * ddim_error(steps), steps
    assert dpm_error(10) < ddim_error(20)
    assert dpm_error(10, "logsnr") < ddim_error(10)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_samples_the_data_distribution(eta: float) -> None:
    start = torch.randn(1, 40_000, generator=seeded(1))
    made = ddim(gaussian_epsilon, start, SCHEDULE, 200, eta=eta, noise=seeded(2), shifted_alpha=False,
                threshold_quantile=None)  # fmt: skip
    assert float(made.mean()) == pytest.approx(MEAN, abs=0.01)
    assert float(made.std()) == pytest.approx(SPREAD, abs=0.015)


def test_ddim_noise_and_alphas() -> None:
    """Two steps by hand, with and without the published shift."""
    product = SCHEDULE.alphas_cumprod.double()
    (time, following), (last, _) = ddim_times(2)
    given = [torch.full((1, 9), 0.7, dtype=torch.float64)]
    results = {}
    for shift in (0, 1):
        level, after = product[time - shift], product[following - shift]
        estimate = gaussian_epsilon(START, time)
        data = (START - (1 - product[time]).sqrt() * estimate) / product[time].sqrt()
        sigma = 0.4 * ((1 - after) / (1 - level) * (1 - level / after)).sqrt()
        x = after.sqrt() * data + (1 - after - sigma**2).sqrt() * estimate + sigma * given[0]
        true = (x - (1 - product[last]).sqrt() * gaussian_epsilon(x, last)) / product[last].sqrt()
        made = ddim(gaussian_epsilon, START, SCHEDULE, 2, eta=0.4, noise=given, shifted_alpha=bool(shift),
                    threshold_quantile=None)  # fmt: skip
        torch.testing.assert_close(made, true, atol=1e-5, rtol=0)
        results[shift] = made
    assert float((results[0] - results[1]).abs().max()) > 1e-4


def test_samplers_are_reproducible_and_report_progress() -> None:
    start = torch.randn(2, 3, 4, generator=seeded(3))
    done: list[int] = []
    one, two, other = (
        ddim(gaussian_epsilon, start, SCHEDULE, 4, noise=seeded(seed), progress=done.append) for seed in (5, 5, 6)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)
    assert done == [1, 2, 3, 4] * 3
    assert float(one.abs().max()) <= 1
    done.clear()
    made = dpm_solver(gaussian_epsilon, 9 * start, SCHEDULE, 6, progress=done.append)
    assert done == [1, 2, 3, 4, 5, 6]
    assert float(made.abs().max()) == 1  # the threshold is at work
    asked: list[int] = []

    def epsilon(x: Tensor, time: int) -> Tensor:
        asked.append(time)
        return x

    dpm_solver(epsilon, start, SCHEDULE, 8, spacing="logsnr")
    assert asked == dpm_times(SCHEDULE, 8, "logsnr")
    assert asked[0] == gaussian.DPM_START and asked[-1] > 0


def test_steps_that_do_not_fit_are_refused() -> None:
    for steps in (0, 1000):
        with pytest.raises(ConfigError, match=f"{steps} DDIM steps"):
            ddim_times(steps)
    with pytest.raises(ConfigError, match="generator"):
        ddim(gaussian_epsilon, START, SCHEDULE, 3, eta=1.0)
    for steps, spacing in ((0, "time"), (2000, "time"), (400, "logsnr")):
        with pytest.raises(ConfigError, match=f"{steps} DPM"):
            dpm_times(SCHEDULE, steps, spacing)  # type: ignore[arg-type]
