"""Samplers and the rectified-flow objective, on problems with known answers."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from dawn.diffusion.guidance import guide, guided
from dawn.diffusion.rectified import Velocity, data_estimate, draw_times, euler, rectified_path

START = torch.full((1, 1, 1), 2.0, dtype=torch.float64)


def growth(x: Tensor, time: float) -> Tensor:
    """dx/dt = x cos t, so that x(1) = x(0) exp(sin 1)."""
    return x * math.cos(time)


def error(steps: int) -> float:
    return abs(float(euler(growth, START, steps)) - 2 * math.exp(math.sin(1)))


def test_euler_is_of_first_order() -> None:
    assert error(400) < 0.01
    assert math.log2(error(200) / error(400)) == pytest.approx(1, abs=0.15)


def test_euler_steps_start_at_noise_and_never_ask_for_the_end() -> None:
    times: list[float] = []

    def velocity(x: Tensor, time: float) -> Tensor:
        times.append(time)
        return torch.ones_like(x)

    done: list[int] = []
    assert float(euler(velocity, START, 4, done.append)) == pytest.approx(3)
    assert times == [0, 0.25, 0.5, 0.75]
    assert done == [1, 2, 3, 4]


@pytest.mark.parametrize("steps", [1, 3])
def test_straight_paths_need_one_step(steps: int) -> None:
    target = torch.randn(2, 5, 3, dtype=torch.float64)
    noise = torch.randn(2, 5, 3, dtype=torch.float64)

    def velocity(x: Tensor, time: float) -> Tensor:
        return (target - x) / (1 - time)

    torch.testing.assert_close(euler(velocity, noise, steps), target)


def test_path_runs_from_noise_to_data() -> None:
    data, noise = torch.randn(2, 4, 7, 3)
    for share, expected in ((0.0, noise), (1.0, data), (0.25, 0.25 * data + 0.75 * noise)):
        point, velocity = rectified_path(data, noise, torch.full((4,), share))
        torch.testing.assert_close(point, expected)
        torch.testing.assert_close(velocity, data - noise)


def test_each_row_has_its_own_time() -> None:
    data, noise = torch.ones(3, 2, 1), torch.zeros(3, 2, 1)
    point, _ = rectified_path(data, noise, torch.tensor([0.1, 0.5, 0.9]))
    torch.testing.assert_close(point[:, 0, 0], torch.tensor([0.1, 0.5, 0.9]))


def test_data_estimate_follows_the_path_to_its_end() -> None:
    data, noise = torch.randn(2, 4, 7, 3)
    time = torch.tensor([0.0, 0.3, 0.7, 1.0])
    torch.testing.assert_close(data_estimate(*rectified_path(data, noise, time), time), data)


@pytest.mark.parametrize(("strength", "expected"), [(0, 6), (1, 4), (2.5, 1), (-1, 8)])
def test_guidance_moves_from_the_unconditional(strength: float, expected: float) -> None:
    conditional, unconditional = torch.tensor([4.0]), torch.tensor([6.0])
    assert float(guide(conditional, unconditional, strength)) == expected
    velocity = guided(lambda x, time: x + 1, lambda x, time: 2 * x, strength)
    assert float(velocity(torch.tensor([3.0]), 0.5)) == expected


def test_guidance_of_one_never_asks_the_unconditional() -> None:
    def conditional(x: Tensor, time: float) -> Tensor:
        return x + 1

    def unconditional(x: Tensor, time: float) -> Tensor:
        raise AssertionError("asked")

    assert guided(conditional, unconditional, 1) is conditional
    with pytest.raises(AssertionError, match="asked"):
        guided(conditional, unconditional, 1.5)(START, 0.5)


def test_guidance_takes_any_prediction() -> None:
    """Noise at a whole-numbered time, as the published model's samplers ask for it, and named arguments."""

    def conditional(x: Tensor, time: int, *, gain: float = 1.0) -> Tensor:
        return gain * x * time

    def unconditional(x: Tensor, time: int, *, gain: float = 1.0) -> Tensor:
        return torch.zeros_like(x)

    x = torch.randn(1, 3, 4, 2, 2)
    torch.testing.assert_close(guided(conditional, unconditional, 3.0)(x, 7, gain=0.5), 3 * 0.5 * 7 * x)


def test_draw_times() -> None:
    times = draw_times(20_000, torch.Generator().manual_seed(0))
    assert float(times.min()) >= 0 and float(times.max()) <= 1
    early = torch.distributions.Normal(0.0, 1.0).cdf(torch.tensor(math.log(0.2 / 0.8)))
    assert float((times < 0.2).float().mean()) == pytest.approx(0.3 + 0.7 * float(early), abs=0.02)
    assert torch.equal(times, draw_times(20_000, torch.Generator().manual_seed(0)))
    symmetric = draw_times(20_000, torch.Generator().manual_seed(0), 0.0)
    assert float((symmetric < 0.5).float().mean()) == pytest.approx(0.5, abs=0.02)


def trained_on(mean: float, spread: float) -> Velocity:
    """A small network trained by the objective on N(mean, spread^2)."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(nn.Linear(2, 32), nn.SiLU(), nn.Linear(32, 1))
    optimizer = torch.optim.Adam(network.parameters(), 1e-2)
    for _ in range(400):
        data = mean + spread * torch.randn(256, 1, 1, generator=generator)
        time = draw_times(256, generator)
        point, velocity = rectified_path(data, torch.randn(256, 1, 1, generator=generator), time)
        made = network(torch.cat((point, time[:, None, None]), -1))
        optimizer.zero_grad()
        (made - velocity).square().mean().backward()
        optimizer.step()
    network.requires_grad_(False)
    return lambda x, time: network(torch.cat((x, torch.full_like(x, time)), -1))


def test_objective_and_sampler_learn_a_distribution() -> None:
    velocity = trained_on(3.0, 0.5)
    noise = torch.randn(4000, 1, 1, generator=torch.Generator().manual_seed(1))
    made = euler(velocity, noise, 8)
    assert float(made.mean()) == pytest.approx(3.0, abs=0.15)
    assert float(made.std()) == pytest.approx(0.5, abs=0.15)
