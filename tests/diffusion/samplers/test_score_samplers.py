"""Accelerated DDIM and DDPM: the written-out rule, the orders, the exact variance, the cost."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import VE, AcceleratedDDIM, AcceleratedDDPM, FlowMatching, VPLinear, sample
from hasten.numerics import time_grid
from hasten.numerics.mixture import Gaussian, circle
from hasten.numerics.reference import order_fit, rms

TIMES = (1.0, 0.6, 0.35, 0.1)


def test_is_the_written_out_recursion(wave, start) -> None:
    """The paper's index form, with its own abar and scores, on a grid that is uniform in nothing."""
    schedule = VPLinear()
    abar = [math.exp(2 * schedule.log_alpha(t)) for t in TIMES]

    def score(y, i):
        return -wave.eps(y, TIMES[i]) / math.sqrt(1 - abar[i])

    y = start.clone()
    for i in range(3):
        a, s = abar[i] / abar[i + 1], score(y, i)
        bracket = y + (1 - a) / 2 * s
        if i > 0:
            b = abar[i - 1] / abar[i]
            guess = math.sqrt(b) * (y - (1 - b) / 2 * s)
            bracket = bracket + (1 - a) ** 2 / (4 * (1 - b)) * (s - math.sqrt(b) * score(guess, i - 1))
        y = bracket / math.sqrt(a)
    torch.testing.assert_close(sample(wave, noise=start, sampler=AcceleratedDDIM(grid=TIMES)), y, rtol=1e-10, atol=0)


@pytest.mark.parametrize(("accelerated", "low", "high"), [(True, 1.7, 2.3), (False, 0.8, 1.1)])
def test_order_of_convergence(bench, accelerated: bool, low: float, high: float) -> None:
    errors = [
        rms(sample(bench.denoiser, noise=bench.noise, sampler=AcceleratedDDIM(accelerated, steps=n)), bench.exact)
        for n in (96, 192)
    ]
    assert low <= order_fit(errors, (96, 192)) <= high


@pytest.mark.parametrize("schedule", [VE(), FlowMatching()], ids=["ve", "flow"])
def test_converges_where_the_variance_is_not_preserved(bench, schedule) -> None:
    denoiser = circle().denoiser(schedule)
    noise = schedule.noise_scale * bench.noise
    exact = denoiser.solve(noise)
    errors = [rms(sample(denoiser, noise=noise, sampler=AcceleratedDDIM(steps=n)), exact) for n in (200, 400)]
    assert order_fit(errors, (200, 400)) > 1.6


@pytest.mark.parametrize(("accelerated", "nfe"), [(True, 13), (False, 7)])
def test_cost(bench, accelerated: bool, nfe: int) -> None:
    costs: dict[str, int] = {}
    sample(bench.denoiser, noise=bench.noise, sampler=AcceleratedDDIM(accelerated), steps=7, costs=costs)
    assert costs["nfe"] == nfe


@pytest.mark.parametrize("accelerated", [True, False])
@pytest.mark.parametrize("schedule", [VPLinear(), VE(sigma_max=5.0)], ids=["vp", "ve"])
def test_variance_of_samples_is_the_recursions(accelerated: bool, schedule) -> None:
    made = AcceleratedDDPM(accelerated, steps=40)
    expected = made.variance(schedule, time_grid.make(schedule, 40), 0.25)
    denoiser = Gaussian([0.25]).denoiser(schedule)
    costs: dict[str, int] = {}
    generator = torch.Generator().manual_seed(0)
    drawn = sample(denoiser, (60000, 1), made, dtype=torch.float64, generator=generator, costs=costs)
    assert costs["nfe"] == 40
    assert float(drawn.var()) == pytest.approx(expected, rel=0.02)
    assert abs(float(drawn.mean())) < 0.01


def test_variance_converges_an_order_faster() -> None:
    schedule = VPLinear()
    goal = schedule.alpha(1e-3) ** 2 * 0.25 + schedule.sigma(1e-3) ** 2

    def order(accelerated: bool) -> float:
        counts = (48, 96, 192, 384)
        made = AcceleratedDDPM(accelerated)
        return order_fit(
            [abs(made.variance(schedule, time_grid.make(schedule, n), 0.25) - goal) for n in counts], counts
        )

    assert order(True) >= 1.9
    assert 0.8 <= order(False) <= 1.2


def test_refusals(bench) -> None:
    with pytest.raises(InputError, match="accelerated"):
        AcceleratedDDIM(accelerated="yes")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="data"):
        AcceleratedDDPM().variance(VPLinear(), TIMES, 0.0)
    with pytest.raises(InputError, match="alpha=0"):
        sample(circle().denoiser(FlowMatching(T=1.0)), noise=bench.noise, sampler=AcceleratedDDIM(grid=(1.0, 0.5, 0.1)))
