"""Gaussian diffusion: the published buffers, times and trajectory, and samplers on data with a known answer."""

from __future__ import annotations

import dataclasses
import math
from itertools import pairwise

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
    point = SCHEDULE.add_noise(data, noise, time)
    share = parity("schedule")["alphas_cumprod"][400]
    torch.testing.assert_close(point[1], share.sqrt() * data[1] + (1 - share).sqrt() * noise[1])
    torch.testing.assert_close(SCHEDULE.estimate_data(point, noise, time), data, atol=1e-5, rtol=0)
    torch.testing.assert_close(SCHEDULE.estimate_data(point[1:2], noise[1:2], 400), data[1:2], atol=1e-5, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 7, 24_576, 100_001])
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
    """Noise estimates are solved from the stored trajectory by the paper's formula (float64); given them, the sampler repeats
    it. Without the threshold, so that there is one solution."""
    true, buffers = parity("e2e_128_t8_s5"), {k: v.double() for k, v in parity("schedule").items()}
    points, noises = true["x_t"], true["noise"]
    shifted, product = buffers["alphas_cumprod_prev"], buffers["alphas_cumprod"]
    final = torch.cat((true["grid"], 2 * true["conf"] - 1), 1)
    times, estimates = [*buffers["ddim_time_5"].long().tolist(), 0], []
    for index, (time, following) in enumerate(pairwise(times)):
        level, after = shifted[time], shifted[following]
        sigma = ((1 - level / after) * (1 - after) / (1 - level)).sqrt()
        direct = (1 - after - sigma**2).sqrt()
        drawn = noises[index].double() if following else torch.zeros(())
        x, reached = points[index].double(), (points[index + 1] if following else final).double()
        # sqrt(after) (x / sqrt(a) - sqrt(1 / a - 1) e) + direct e + sigma drawn = reached
        share = (after / product[time]).sqrt() * x + sigma * drawn
        estimate = (reached - share) / (direct - (after / product[time] - after).sqrt())
        if following:
            # The network did not know the noise of its own step; a wrong sigma would leave some of it in the estimate.
            match = torch.corrcoef(torch.stack((estimate.flatten(), drawn.flatten())))[0, 1]
            assert abs(float(match)) < 0.03
        estimates.append(estimate.float())
    seen: list[Tensor] = []

    def epsilon(x: Tensor, time: int) -> Tensor:
        assert time == times[len(seen)]
        seen.append(x)
        return estimates[len(seen) - 1]

    made = ddim(epsilon, true["noise0"], SCHEDULE, 5, eta=1.0, noise=list(noises), threshold_quantile=None)
    for index in range(5):
        assert relative_error(seen[index], points[index]) < 1e-5, index
    assert relative_error(made, final) < 1e-5


def test_the_published_result_is_thresholded() -> None:
    """A tenth of the stored result was clamped, and thresholding it again changes nothing."""
    true = parity("e2e_128_t8_s5")
    final = torch.cat((true["grid"], 2 * true["conf"] - 1), 1)
    assert float((final.abs() > 1 - 1e-6).double().mean()) == pytest.approx(0.1, abs=2e-3)
    torch.testing.assert_close(dynamic_threshold(final, 0.9), final.clamp(-1, 1))


def test_noise_estimates_stay_raw_when_data_are_clamped() -> None:
    product = SCHEDULE.alphas_cumprod_prev.double()
    start = torch.linspace(-9, 9, 41, dtype=torch.float64)[None]
    (time, following), _ = ddim_times(2)
    seen = []

    def epsilon(x: Tensor, time: int) -> Tensor:
        seen.append(x)
        return 0.1 * x

    ddim(epsilon, start, SCHEDULE, 2, eta=0)
    data = dynamic_threshold(SCHEDULE.estimate_data(start, 0.1 * start, time), 0.9)
    assert float(data.abs().max()) == 1
    true = product[following].sqrt() * data + (1 - product[following]).sqrt() * 0.1 * start
    torch.testing.assert_close(seen[1], true, atol=1e-6, rtol=0)


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


def dpm_error(steps: int, spacing: str) -> float:
    made = dpm_solver(gaussian_epsilon, START, SCHEDULE, steps, spacing=spacing, threshold_quantile=None)  # type: ignore[arg-type]
    return float((made - exact(START, gaussian.DPM_START)).abs().max())


def test_dpm_solver_converges_faster_than_ddim() -> None:
    assert math.log2(ddim_error(40) / ddim_error(80)) == pytest.approx(1, abs=0.3)
    assert ddim_error(320) < 0.01
    for steps in (6, 8, 10):
        assert dpm_error(steps, "logsnr") < 0.25 * ddim_error(steps), steps
        assert dpm_error(steps, "time") < 0.75 * ddim_error(steps), steps
    assert dpm_error(8, "logsnr") < 0.5 * ddim_error(20)
    assert dpm_error(20, "time") < 0.25 * ddim_error(80)
    assert dpm_error(80, "time") < 0.25 * ddim_error(320)


def test_dpm_solver_by_hand() -> None:
    """Three steps after equations of the paper: the first as DDIM without noise, the second extrapolated, then the data."""
    times = dpm_times(SCHEDULE, 3, "time")
    product = SCHEDULE.alphas_cumprod.double()[times]
    alpha, sigma = product.sqrt(), (1 - product).sqrt()
    ratio = (alpha / sigma).log()

    def data(x: Tensor, index: int) -> Tensor:
        return (x - sigma[index] * gaussian_epsilon(x, times[index])) / alpha[index]

    first = data(START, 0)
    x = alpha[1] * first + sigma[1] * gaussian_epsilon(START, times[0])
    second = data(x, 1)
    r = (ratio[1] - ratio[0]) / (ratio[2] - ratio[1])
    extrapolated = (1 + 1 / (2 * r)) * second - first / (2 * r)
    x = sigma[2] / sigma[1] * x - alpha[2] * ((ratio[1] - ratio[2]).exp() - 1) * extrapolated
    made = dpm_solver(gaussian_epsilon, START, SCHEDULE, 3, spacing="time", threshold_quantile=None)
    torch.testing.assert_close(made, data(x, 2), atol=1e-5, rtol=0)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_samples_the_data_distribution(eta: float) -> None:
    start = torch.randn(1, 40_000, generator=seeded(1))
    made = ddim(
        gaussian_epsilon, start, SCHEDULE, 200, eta=eta, noise=seeded(2), shifted_alpha=False, threshold_quantile=None
    )
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
        made = ddim(
            gaussian_epsilon,
            START,
            SCHEDULE,
            2,
            eta=0.4,
            noise=given,
            shifted_alpha=bool(shift),
            threshold_quantile=None,
        )
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
