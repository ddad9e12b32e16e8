"""Noise schedules: their formulas, inverses and derivatives, on floats and tensors."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import InputError
from hasten.numerics.noise import EDM, VE, DiscreteVP, FlowMatching, Schedule, VPCosine, VPLinear

DISCRETE = [DiscreteVP.linear(), DiscreteVP.scaled_linear(50), DiscreteVP.cosine(200), DiscreteVP.sigmoid(100)]
SCHEDULES = [VPLinear(), VPCosine(), *DISCRETE, VE(), EDM(), FlowMatching()]
positions = st.floats(0.0, 1.0, allow_nan=False)


def at(schedule: Schedule, position: float) -> float:
    return schedule.t_min + position * (schedule.T - schedule.t_min)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@given(position=positions)
@settings(max_examples=20)
def test_time_is_recovered_from_lam_and_from_rho(schedule: Schedule, position: float) -> None:
    t = at(schedule, position)
    assert schedule.t_of_lam(schedule.lam(t)) == pytest.approx(t, rel=1e-9, abs=1e-9)
    assert schedule.t_of_rho(schedule.rho(t)) == pytest.approx(t, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@given(position=st.floats(0.01, 0.99))
@settings(max_examples=15)
def test_derivatives_are_those_of_the_levels(schedule: Schedule, position: float) -> None:
    t = torch.tensor(at(schedule, position), dtype=torch.float64, requires_grad=True)
    (sigma,) = torch.autograd.grad(schedule.sigma(t), t)
    (alpha,) = torch.autograd.grad(schedule.alpha(t) + 0 * t, t)
    (square,) = torch.autograd.grad(schedule.sigma(t) ** 2, t)
    torch.testing.assert_close(schedule.dsigma(t.detach()), sigma)
    torch.testing.assert_close(schedule.dalpha(t.detach()), alpha)
    drift = schedule.dlog_alpha(t.detach())
    torch.testing.assert_close(schedule.beta(t.detach()), -2 * drift)
    torch.testing.assert_close(schedule.diffusion2(t.detach()), square - 2 * drift * schedule.sigma(t.detach()) ** 2)


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_levels_run_from_data_to_noise(schedule: Schedule) -> None:
    t = torch.linspace(schedule.t_min, schedule.T, 200, dtype=torch.float64)
    assert bool((schedule.lam(t).diff() < 0).all())
    torch.testing.assert_close(schedule.lam(t), (schedule.alpha(t) / schedule.sigma(t)).log())
    torch.testing.assert_close(schedule.rho(t), schedule.sigma(t) / schedule.alpha(t))
    if isinstance(schedule, (VPLinear, VPCosine, DiscreteVP)):
        torch.testing.assert_close(schedule.alpha(t) ** 2 + schedule.sigma(t) ** 2, torch.ones_like(t))


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_answers_in_kind(schedule: Schedule) -> None:
    t = at(schedule, 0.3)
    assert isinstance(schedule.alpha(t), float)
    single = schedule.sigma(torch.tensor([t, t], dtype=torch.float32))
    assert single.dtype == torch.float32
    assert single.shape == (2,)
    assert float(single[0]) == pytest.approx(schedule.sigma(t), rel=1e-5)
    assert schedule.sigma(torch.tensor(1)).dtype == torch.float64


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_equal_parameters_make_equal_schedules(schedule: Schedule) -> None:
    twin = pickle.loads(pickle.dumps(schedule))
    assert twin == schedule
    assert hash(twin) == hash(schedule)
    assert twin.sigma(at(schedule, 0.5)) == schedule.sigma(at(schedule, 0.5))


def test_known_values() -> None:
    assert VPLinear().log_alpha(1.0) == pytest.approx(-0.25 * 19.9 - 0.05)
    assert VPLinear().beta(0.5) == pytest.approx(0.1 + 0.5 * 19.9)
    assert (VPCosine().alpha(0.0), VPCosine(t_min=0.0).sigma(0.0), VPCosine().lam(0.0)) == (1.0, 0.0, math.inf)
    assert VPCosine().alpha(0.496) == pytest.approx(math.cos(math.pi / 4) / math.cos(0.008 / 1.008 * math.pi / 2))
    assert VE(sigma_min=0.1, sigma_max=10.0).sigma(0.5) == pytest.approx(1.0)
    assert VE(sigma_max=50.0).noise_scale == pytest.approx(50.0)
    assert EDM().rho(3.0) == 3.0
    assert FlowMatching().lam(0.5) == pytest.approx(0.0)


def test_discrete_levels_are_cumulative_products() -> None:
    betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
    schedule = DiscreteVP(betas)
    levels = torch.arange(1000, dtype=torch.float64)
    torch.testing.assert_close(schedule.alpha(levels) ** 2, (1 - betas).cumprod(0))
    assert schedule == DiscreteVP.linear()
    assert schedule.T == 999
    between = 0.5 * (schedule.log_alpha(10.0) + schedule.log_alpha(11.0))
    assert schedule.log_alpha(10.5) == pytest.approx(between)


def test_sigma_keeps_its_digits_near_clean_data() -> None:
    t = 1e-12
    assert VPLinear(t_min=0.0).sigma(t) == pytest.approx(math.sqrt(0.1 * t), rel=1e-6)
    assert VPLinear(t_min=0.0).lam(0.0) == math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda: VPLinear(beta0=0.0),
        lambda: VPLinear(beta0=2.0, beta1=1.0),
        lambda: VPLinear(t_min=1.0),
        lambda: VPLinear(t_min=-0.1),
        lambda: VPCosine(T=1.0),
        lambda: VPCosine(s=0.0),
        lambda: DiscreteVP([0.1]),
        lambda: DiscreteVP([0.1, 1.0]),
        lambda: DiscreteVP([0.1, 0.2], T=5.0),
        lambda: VE(sigma_min=2.0, sigma_max=1.0),
        lambda: EDM(T=0.001),
        lambda: FlowMatching(shift=0.0),
        lambda: FlowMatching(T=1.5),
    ],
)
def test_refuses_bad_parameters(make) -> None:
    with pytest.raises(InputError):
        make()


@pytest.mark.parametrize("name", ["linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid"])
def test_betas_of_a_thousand_levels_are_those_of_diffusers(name: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install hasten[bench])")
    ends = {"beta_start": 0.00085, "beta_end": 0.012} if name == "scaled_linear" else {}
    expected = diffusers.DDPMScheduler(beta_schedule=name, **ends).betas.double()
    ours = getattr(DiscreteVP, "cosine" if name.startswith("squaredcos") else name)()
    torch.testing.assert_close(torch.tensor(ours.betas, dtype=torch.float64), expected, rtol=0, atol=1e-7)


def test_cosine_betas_make_the_cosine_schedule() -> None:
    """Level i of n lies at time (i + 1)/n of the continuous schedule, as far as no beta is cut."""
    levels, continuous = DiscreteVP.cosine(100), VPCosine()
    for i in (0, 49, 97):
        assert levels.alpha(float(i)) == pytest.approx(continuous.alpha((i + 1) / 100), rel=1e-12)
    assert max(levels.betas) == 0.999
