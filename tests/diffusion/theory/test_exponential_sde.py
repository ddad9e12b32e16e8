"""The exponential integrator of the reverse SDE: its closed form, its law in simulation, its grid, its bound."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import FlowMatching, VPLinear, sample
from hasten.diffusion.theory.exponential_sde import (
    ExponentialIntegratorSDE,
    gaussian_sde_kl,
    kl_bound,
    step_fraction,
)
from hasten.numerics.mixture import Gaussian
from hasten.numerics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from hasten.numerics.time_grid import early_stopping, make

SCHEDULE = OrnsteinUhlenbeck()
GRID = early_stopping(6.0, 1e-3, 30)


@pytest.mark.parametrize("schedule", [SCHEDULE, VPLinear()])
def test_steps_are_the_papers_on_variance_preserving_schedules(schedule) -> None:
    times = GRID if schedule is SCHEDULE else make(schedule, 12, "quadratic")
    for (s, t), (at, scale, weight, fresh) in zip(pairwise(times), ExponentialIntegratorSDE().plan(schedule, times)):
        h = schedule.log_alpha(t) - schedule.log_alpha(s)
        assert (at, scale) == (s, pytest.approx(math.exp(h)))
        assert -weight * schedule.sigma(s) == pytest.approx(2 * math.expm1(h), rel=1e-9)
        assert fresh == pytest.approx(math.sqrt(math.expm1(2 * h)), rel=1e-9)


def test_flow_steps_integrate_the_frozen_score() -> None:
    """`alpha = 1 - t`, `sigma = t`: by hand, `int alpha rho^2 dlog(rho)` with `alpha = 1/(1 + rho)`."""
    ((_, _, weight, fresh),) = ExponentialIntegratorSDE().plan(FlowMatching(), (0.6, 0.2))
    rho, low = 1.5, 0.25
    pull = 2 * 0.8 * ((rho - math.log1p(rho)) - (low - math.log1p(low)))
    assert weight == pytest.approx(-pull / 0.6, rel=1e-9)
    assert fresh == pytest.approx(0.8 * math.sqrt(rho**2 - low**2), rel=1e-9)


def test_recursion_is_the_law_of_the_samples() -> None:
    law, grid = Gaussian([0.01, 0.5]), early_stopping(6.0, 1e-3, 12)
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(20000, 2, dtype=torch.float64, generator=generator)
    x = sample(
        law.denoiser(SCHEDULE), noise=noise, sampler="exponential-integrator-sde", grid=grid, generator=generator
    )
    end = SCHEDULE.alpha(1e-3) ** 2 * law.variances[0] + SCHEDULE.sigma(1e-3) ** 2
    ratio = end / x.var(0)
    assert gaussian_sde_kl([0.01, 0.5], SCHEDULE, grid) == pytest.approx(
        float(0.5 * (ratio - 1 - ratio.log()).sum()), rel=0.15
    )


def test_geometric_steps_beat_uniform_ones() -> None:
    geometric, uniform = early_stopping(6.0, 1e-3, 100), make(SCHEDULE, 100, "uniform")
    assert gaussian_sde_kl([0.0], SCHEDULE, geometric) == pytest.approx(2.6e-3, rel=0.05)
    assert gaussian_sde_kl([0.0], SCHEDULE, uniform) == pytest.approx(1.59, rel=0.05)


def test_grid_is_uniform_then_geometric() -> None:
    coarse, fine = GRID[:11], GRID[10:]
    assert len(GRID) == 31
    assert (GRID[0], GRID[10], GRID[-1]) == (6.0, 1.0, 1e-3)
    assert all(s - t == pytest.approx(0.5) for s, t in pairwise(coarse))
    assert all(t / s == pytest.approx(1e-3 ** (1 / 20)) for s, t in pairwise(fine))
    assert step_fraction(GRID) == pytest.approx(max(0.5, 1e-3 ** (-1 / 20) - 1))


def test_bound_adds_three_parts() -> None:
    assert kl_bound(3, 2.0, 1.5, 0.1, 50, 0.2) == pytest.approx(5 * math.exp(-3) + 0.06 + 1.5)


@pytest.mark.parametrize(
    ("match", "make_bad"),
    [
        ("delta", lambda: early_stopping(6.0, 0.0, 10)),
        ("T must", lambda: early_stopping(1.0, 0.1, 10)),
        ("steps", lambda: early_stopping(6.0, 0.1, 2)),
        ("variances", lambda: gaussian_sde_kl([-1.0], SCHEDULE, GRID)),
        ("kappa", lambda: kl_bound(1, 1.0, 1.0, 0.0, 10)),
        ("d must", lambda: kl_bound(0, 1.0, 1.0, 0.1, 10)),
        ("alpha or sigma is 0", lambda: ExponentialIntegratorSDE().plan(FlowMatching(), (0.9, 0.0))),
    ],
)
def test_refuses_bad_arguments(match: str, make_bad) -> None:
    with pytest.raises(InputError, match=match):
        make_bad()
