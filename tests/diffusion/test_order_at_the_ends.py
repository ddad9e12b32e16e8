"""Orders of convergence of the solvers close to clean data and close to noise, in float64, on every schedule."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.diffusion import DEIS, EDM, VE, Denoiser, FlowMatching, Schedule, VPCosine, VPLinear, sample
from hasten.diffusion.base import SamplerState
from hasten.numerics import time_grid
from hasten.numerics.mixture import circle
from hasten.numerics.reference import order_fit, rk4_lambda, rms

MIXTURE = circle()
WINDOWS: list[tuple[Schedule, float, float]] = [
    (VPLinear(), 0.05, 1e-4),
    (VPCosine(), 0.05, 1e-4),
    (VE(), 0.1, 0.0),
    (EDM(), 0.05, 2e-3),
    (FlowMatching(), 0.05, 1e-3),
    (VPLinear(), 1.0, 0.9),
    (VPCosine(), 0.9946, 0.8946),
    (VE(), 1.0, 0.9),
    (EDM(), 80.0, 40.0),
    (FlowMatching(), 0.999, 0.9),
]
SOLVERS: list[tuple[str, dict[str, Any], int]] = [
    ("ddim", {"grid": "logsnr"}, 1),
    ("dpm-solver-2", {}, 2),
    ("dpm-solver-3", {}, 3),
    ("dpmpp-2m", {"lower_order_final": False}, 2),
    ("deis", {"order": 1, "grid": "logsnr"}, 2),
]
STEPS = (8, 16, 32, 64)
SLACK = 0.2


class Window:
    """A piece of a schedule, noisy data at its beginning and the exact solution at its end."""

    def __init__(self, schedule: Schedule, begin: float, end: float) -> None:
        self.schedule = replace(schedule, T=begin, t_min=end)
        generator = torch.Generator().manual_seed(0)
        clean = MIXTURE.sample(16, generator)
        eps = torch.randn(16, 2, dtype=torch.float64, generator=generator)
        self.denoiser: Denoiser = MIXTURE.denoiser(self.schedule)
        self.noise = schedule.alpha(begin) * clean + schedule.sigma(begin) * eps
        self.exact = rk4_lambda(self.denoiser, self.noise, steps=250)

    def at(self, t: float) -> Tensor:
        """The exact solution at time t."""
        return self.noise if t == self.schedule.T else rk4_lambda(self.denoiser, self.noise, steps=20, t_end=t)


@pytest.fixture(
    scope="module", params=WINDOWS, ids=lambda w: f"{type(w[0]).__name__} from {w[1]:g} to {w[2]:g}" if w else ""
)
def window(request: pytest.FixtureRequest) -> Window:
    return Window(*request.param)


@pytest.mark.parametrize(("name", "hyper", "order"), SOLVERS, ids=[name for name, _, _ in SOLVERS])
def test_solvers_keep_their_order(window: Window, name: str, hyper: dict[str, Any], order: int) -> None:
    def error(steps: int) -> float:
        return rms(sample(window.denoiser, noise=window.noise, sampler=name, steps=steps, **hyper), window.exact)

    assert order_fit([error(steps) for steps in STEPS], STEPS, floor=5e-12) > order - SLACK


@pytest.mark.parametrize("order", [2, 3])
def test_deis_keeps_its_order_from_exact_past_predictions(window: Window, order: int) -> None:
    """Its first steps, of lower order, would hide that of the others, as in every multistep method."""
    if isinstance(window.schedule, (EDM, FlowMatching)) or window.schedule == VPLinear(T=1.0, t_min=0.9):
        return

    def error(steps: int) -> float:
        times = time_grid.logsnr(window.schedule, steps)
        past = [window.at(t) for t in times[: order + 1]]
        state = SamplerState(past[-1], DEIS(order).plan(window.schedule, times), torch.default_generator, order)
        state.outputs = [window.denoiser.eps(x, t) for x, t in zip(past[:-1], times)][::-1]
        while state.index < steps:
            state.x = DEIS(order).advance(window.denoiser, state)
            state.index += 1
        return rms(state.x, window.exact)

    assert math.log2(error(64) / error(128)) > order + 1 - 2 * SLACK


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), EDM(), FlowMatching()], ids=lambda s: type(s).__name__)
def test_times_and_levels_keep_their_digits_near_clean_data(schedule: Schedule) -> None:
    t = torch.logspace(-7, -2, 30, dtype=torch.float64)
    torch.testing.assert_close(schedule.t_of_lam(schedule.lam(t)), t, rtol=1e-9, atol=0.0)
    slope = (schedule.sigma(t * (1 + 1e-4)) - schedule.sigma(t * (1 - 1e-4))) / (2e-4 * t)
    torch.testing.assert_close(slope, schedule.dsigma(t), rtol=1e-6, atol=0.0)


def test_cosine_schedule_is_exact_at_its_clean_end() -> None:
    """`sigma^2 = sin(2a + d) sin(d)/cos(a)^2` with the angle a at t = 0 and d from there."""
    schedule = VPCosine(t_min=0.0)
    assert schedule.sigma(0.0) == 0.0
    assert schedule.alpha(0.0) == 1.0
    a = 0.008 / 1.008 * math.pi / 2
    for t in (1e-12, 1e-8, 1e-4, 0.1, 0.2499, 0.25, 0.5, 0.99):
        d = t / 1.008 * math.pi / 2
        assert schedule.sigma(t) == pytest.approx(math.sqrt(math.sin(2 * a + d) * math.sin(d)) / math.cos(a), rel=1e-12)
        assert schedule.alpha(t) == pytest.approx(math.cos(a + d) / math.cos(a), rel=1e-12)
    end = sample(MIXTURE.denoiser(schedule), noise=torch.ones(2, 2), sampler="dpmpp-2m", grid=(0.9, 0.5, 0.1, 0.0))
    assert bool(end.isfinite().all())
