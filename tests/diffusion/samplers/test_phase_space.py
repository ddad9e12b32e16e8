"""Splitting integrators: one written-out step, orders, cost, the law of the stochastic ones, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.diffusion import PSLD, SplittingIntegrator, VPLinear, lift, sample
from hasten.numerics.mixture import GaussianMixture, circle
from hasten.numerics.reference import order_fit, rms

MODEL: Any = lift(circle(), PSLD())
NOISE = MODEL.schedule.prior((32, 2), torch.Generator().manual_seed(0))
COSTS = {"euler": 1, "nse": 2, "nvv": 3, "rse": 1, "rvv": 2, "oba": 2, "obab": 3}


@pytest.fixture(scope="module")
def exact() -> Tensor:
    return MODEL.solve(NOISE, steps=400)


def run(scheme: str, steps: int, **options) -> Tensor:
    return sample(MODEL, noise=NOISE, sampler=SplittingIntegrator(scheme), steps=steps, **options)


@pytest.mark.parametrize("reuse", [False, True], ids=["nvv", "rvv"])
def test_one_step_of_verlet_written_out(reuse: bool) -> None:
    p, (s, t) = MODEL.schedule, (0.5, 0.4)
    half = 0.5 * p.beta
    x, m = NOISE[:, 0], NOISE[:, 1]
    first = MODEL.score(NOISE, s)
    m = m + 0.05 * half * (p.nu * m + x + p.mass * p.nu * first[:, 1])
    second = first if reuse else MODEL.score(torch.stack((x, m), 1), s)
    x = x + 0.1 * half * (p.gamma * x - m / p.mass + p.gamma * second[:, 0])
    last = MODEL.score(torch.stack((x, m), 1), t)
    m = m + 0.05 * half * (p.nu * m + x + p.mass * p.nu * last[:, 1])
    found = sample(MODEL, noise=NOISE, sampler=SplittingIntegrator("rvv" if reuse else "nvv", grid=(s, t)))
    torch.testing.assert_close(found, torch.stack((x, m), 1), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("scheme", COSTS)
def test_cost(scheme: str) -> None:
    costs: dict[str, int] = {}
    out = run(scheme, 5, costs=costs)
    assert costs["nfe"] == 5 * COSTS[scheme]
    assert out.shape == NOISE.shape
    sample(MODEL, noise=NOISE, sampler=SplittingIntegrator(scheme), nfe=12, costs=costs)
    assert 10 <= costs["nfe"] <= 12


@pytest.mark.parametrize("scheme", ["euler", "nse", "nvv", "rse", "rvv"])
def test_converges(exact: Tensor, scheme: str) -> None:
    errors = [rms(run(scheme, n)[:, 0], exact[:, 0]) for n in (200, 400)]
    assert 0.8 < order_fit(errors, (200, 400)) < 2.3


def test_at_equal_evaluations_splitting_is_nearer(exact: Tensor) -> None:
    euler, nse, nvv = (
        rms(run(scheme, n)[:, 0], exact[:, 0]) for scheme, n in (("euler", 100), ("nse", 50), ("nvv", 33))
    )
    assert nse < 0.6 * euler
    assert nvv < 0.4 * euler


@pytest.mark.parametrize("scheme", ["oba", "obab"])
def test_stochastic_schemes_draw_from_the_law(scheme: str) -> None:
    data = GaussianMixture([[0.5]], [0.25])
    model: Any = lift(data, PSLD())
    generator = torch.Generator().manual_seed(1)
    noise = model.schedule.prior((5000, 1), generator)
    out = sample(model, noise=noise, sampler=SplittingIntegrator(scheme), steps=500, generator=generator)
    factor, covariance = model.schedule.kernel(model.schedule.t_min)
    spread = 0.25 * torch.outer(factor[:, 0], factor[:, 0]) + covariance
    assert float(out[:, 0].mean()) == pytest.approx(0.5 * float(factor[0, 0]), abs=0.03)
    assert float(out[:, 0].var()) == pytest.approx(float(spread[0, 0]), rel=0.14)
    assert float(out[:, 1].var()) == pytest.approx(float(spread[1, 1]), rel=0.14)


def test_refusals() -> None:
    with pytest.raises(InputError, match="scheme"):
        SplittingIntegrator("verlet")
    with pytest.raises(InputError, match="uniform"):
        SplittingIntegrator(grid="logsnr")
    with pytest.raises(InputError, match="phase space"):
        sample(circle().denoiser(VPLinear()), noise=NOISE[:, 0], sampler=SplittingIntegrator(), steps=4)
    with pytest.raises(InputError, match="decrease"):
        sample(MODEL, noise=NOISE, sampler=SplittingIntegrator(grid=(0.1, 0.5)))
    with pytest.raises(InputError, match="needs 3 evaluations"):
        sample(MODEL, noise=NOISE, sampler=SplittingIntegrator("nvv"), nfe=2)
