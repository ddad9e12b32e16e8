"""Exact Wasserstein errors on Gaussian data against simulated samples, and how they add up."""

from __future__ import annotations

import math

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import VE, FlowMatching, VPCosine, VPLinear, gaussian_pf_ode_w2, pf_ode_budget, sample
from hasten.diffusion.paths.kinetic_optimal import euler
from hasten.numerics.metrics import gaussian_w2
from hasten.numerics.mixture import Gaussian
from hasten.numerics.time_grid import make

SPECTRUM = torch.tensor([0.2, 0.7, 2.0], dtype=torch.float64)
PARTICLES = 100_000


def noise(schedule, count: int = PARTICLES) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return schedule.noise_scale * torch.randn(count, 3, dtype=torch.float64, generator=generator)


@pytest.mark.parametrize("schedule", [VPLinear(), VPCosine(), VE(), FlowMatching()], ids=lambda s: type(s).__name__)
@pytest.mark.parametrize("mean", [0.0, 0.8])
def test_total_is_that_of_simulated_samples(schedule, mean: float) -> None:
    """Within three standard errors of the samples' mean and standard deviation."""
    law = Gaussian(SPECTRUM, torch.full((3,), mean))
    x = sample(law.denoiser(schedule), noise=noise(schedule), sampler="ddim", steps=8, grid="uniform")
    end = schedule.alpha(schedule.t_min) ** 2 * SPECTRUM + schedule.sigma(schedule.t_min) ** 2
    centre = torch.full((3,), mean * schedule.alpha(schedule.t_min), dtype=torch.float64)
    simulated = gaussian_w2(x.mean(0), x.var(0), centre, end)
    slack = 3 * float((x.var(0) * 1.5 / PARTICLES).sum().sqrt())
    assert gaussian_pf_ode_w2(SPECTRUM, schedule, 8, mean=mean).total == pytest.approx(simulated, abs=slack)


def test_euler_is_that_of_simulated_samples() -> None:
    schedule = FlowMatching()
    x = euler(Gaussian(SPECTRUM).denoiser(schedule), noise(schedule), 8)
    end = schedule.alpha(1e-3) ** 2 * SPECTRUM + schedule.sigma(1e-3) ** 2
    simulated = gaussian_w2(torch.zeros(3), x.var(0), torch.zeros(3), end)
    found = gaussian_pf_ode_w2(SPECTRUM, schedule, 8, scheme="euler").total
    assert found == pytest.approx(simulated, abs=3 * float((x.var(0) / 2 / PARTICLES).sum().sqrt()))


def test_start_is_that_of_the_exact_flow() -> None:
    schedule = VPLinear(T=0.4)
    x = Gaussian(SPECTRUM).flow(noise(schedule), schedule)
    end = schedule.alpha(1e-3) ** 2 * SPECTRUM + schedule.sigma(1e-3) ** 2
    simulated = gaussian_w2(torch.zeros(3), x.var(0), torch.zeros(3), end)
    assert gaussian_pf_ode_w2(SPECTRUM, schedule, 1).start == pytest.approx(simulated, abs=0.01)


def test_parts_bound_the_total_and_vanish() -> None:
    for count in (5, 20, 100):
        errors = gaussian_pf_ode_w2(SPECTRUM, VPLinear(), make(VPLinear(), count, "quadratic"), mean=0.5)
        assert abs(errors.start - errors.steps) <= errors.total + 1e-12 <= errors.start + errors.steps + 2e-12
    fine = gaussian_pf_ode_w2(SPECTRUM, VPLinear(), 4000)
    assert fine.steps < 2e-3
    assert fine.total == pytest.approx(fine.start, abs=2e-3)


def test_budget_is_the_smallest_number_of_steps() -> None:
    count, errors = pf_ode_budget(VPLinear(), 4, 0.05)
    spectrum = 0.2 + 1.8 * (torch.arange(4) + 0.5) / 4
    assert errors.steps <= 0.05 < gaussian_pf_ode_w2(spectrum, VPLinear(), count - 1).steps
    wide, _ = pf_ode_budget(VPLinear(), 64, 0.05)
    assert wide / count == pytest.approx(4.0, rel=0.05)


def test_score_error_of_a_constant_is_what_the_flow_carries() -> None:
    """For `N(0, 1)` data under VP the gain is one, so an error e adds `e int g^2/2 dt = e int beta/2 dt`."""
    _, errors = pf_ode_budget(VPLinear(), 1, 0.1, low=1.0, high=1.0, score_err=0.01)
    assert errors.score == pytest.approx(-0.01 * (VPLinear().log_alpha(1.0) - VPLinear().log_alpha(1e-3)), rel=1e-6)
    assert math.isclose(errors.total, 0.0, abs_tol=0.1)


@pytest.mark.parametrize(
    ("match", "make_bad"),
    [
        ("spectrum", lambda: gaussian_pf_ode_w2([0.0, 1.0], VPLinear())),
        ("spectrum", lambda: gaussian_pf_ode_w2(1.0, VPLinear())),
        ("scheme", lambda: gaussian_pf_ode_w2([1.0], VPLinear(), scheme="heun")),
        ("steps", lambda: gaussian_pf_ode_w2([1.0], VPLinear(), 0)),
        ("eps", lambda: pf_ode_budget(VPLinear(), 4, 0.0)),
        ("high", lambda: pf_ode_budget(VPLinear(), 4, 0.1, low=1.0, high=0.5)),
        ("raise eps or most", lambda: pf_ode_budget(VPLinear(), 4, 1e-3, most=8)),
    ],
)
def test_refuses_bad_arguments(match: str, make_bad) -> None:
    with pytest.raises(InputError, match=match):
        make_bad()
