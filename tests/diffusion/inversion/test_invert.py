"""What every inversion must do: walk to the noise, count honestly, treat samples alike, refuse bad data."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.card import Card
from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.kinds.invert import Inversion
from hasten.core.run import run
from hasten.diffusion import VE, Denoiser, FlowMatching, Schedule, VPLinear, invert, sample
from hasten.diffusion.inversion.ddim import ddim_invert
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rk4_lambda, rms

CARDS = [card for card in hasten.methods("diffusion") if "invert" in card.kinds and not card.needs]
MIXTURE = circle()
every = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def data(count: int = 6) -> Tensor:
    return MIXTURE.sample(count, torch.Generator().manual_seed(0))


def run_inversion(card: Card, x0: Tensor, steps: int = 12, schedule: Schedule | None = None, **options: Any) -> Tensor:
    return invert(MIXTURE.denoiser(schedule or VPLinear()), x0, steps, card.name, **options)


@every
def test_noise_generates_the_data(card: Card) -> None:
    """Up to the error of DDIM inversion, for every schedule."""
    for schedule in (VPLinear(), VE(), FlowMatching()):
        denoiser = MIXTURE.denoiser(schedule)
        noise = run_inversion(card, data(32), 40, schedule, grid="logsnr")
        near = (rk4_lambda(denoiser, noise, 200) - data(32)).norm(dim=1).median()
        assert float(near) < 0.4, f"{type(schedule).__name__}: far from the data"


@every
def test_error_falls_with_evaluations(card: Card) -> None:
    """To that of the discretised sampler, where this is what the method inverts."""
    trace = run(card.make(), problem("gaussian-mixture-inversion:batch=16"), target=-math.inf, budget=128)
    assert trace.status == "budget", trace.message
    assert all(spent <= rung for spent, rung in zip(trace.calls["nfe"], (8, 16, 32, 64, 128)))
    assert trace.metric[-1] < 0.6 * trace.metric[0]
    assert trace.metric[-1] < (0.4 if card.name == "flowopt" else 0.12)


@every
def test_spends_no_more_than_it_may(card: Card) -> None:
    for nfe in (8, 11, 30):
        costs: dict[str, int] = {}
        out = invert(MIXTURE.denoiser(VPLinear()), data(), method=card.name, nfe=nfe, costs=costs)
        assert 1 <= costs["nfe"] <= nfe
        assert bool(out.isfinite().all())


@every
def test_samples_do_not_see_each_other(card: Card) -> None:
    x0 = data()
    together = run_inversion(card, x0)
    torch.testing.assert_close(run_inversion(card, x0[:1]), together[:1], atol=1e-9, rtol=1e-9)


@every
def test_single_and_double_precision_agree(card: Card) -> None:
    single, double = run_inversion(card, data().float()), run_inversion(card, data().float().double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=2e-3, rtol=2e-3)


@every
def test_data_and_network_are_left_alone(card: Card) -> None:
    x0 = data()
    before = x0.clone()
    layer = torch.nn.Linear(2, 2).double()
    out = invert(Denoiser(lambda x, t: layer(x) * 0.1, VPLinear()), x0, 4, card.name)
    assert torch.equal(x0, before)
    assert not out.requires_grad
    assert layer.weight.grad is None


@every
def test_shape_of_data_is_free(card: Card) -> None:
    denoiser = Denoiser(lambda x, t: 0.5 * x, VPLinear())
    flat = data(12).reshape(3, 8)
    image = invert(denoiser, flat.reshape(3, 2, 2, 2), 6, card.name)
    torch.testing.assert_close(image.reshape(3, 8), invert(denoiser, flat, 6, card.name))


@every
def test_bad_arguments_are_refused(card: Card) -> None:
    denoiser = MIXTURE.denoiser(VPLinear())
    bad = data()
    bad[2, 1] = math.nan
    with pytest.raises(InputError, match="nan or infinity"):
        invert(denoiser, bad, 5, card.name)
    with pytest.raises(InputError, match="real batch"):
        invert(denoiser, data()[0], 5, card.name)
    with pytest.raises(InputError, match="grid"):
        invert(denoiser, data(), method=card.name, grid=(0.1, 0.5))
    with pytest.raises(InputError, match="steps"):
        invert(denoiser, data(), 0, card.name)
    with pytest.raises(InputError, match="either steps or nfe"):
        invert(denoiser, data(), 5, card.name, nfe=5)
    with pytest.raises(InputError, match=r"call hasten\.diffusion\.invert"):
        sample(denoiser, noise=data(), sampler=card.name, steps=4)


@every
def test_a_broken_network_ends_the_run_as_diverged(card: Card) -> None:
    broken = Denoiser(lambda x, t: x * math.inf, VPLinear())
    made = hasten.Problem("broken", "invert", lambda seed: Inversion(broken, data(), lambda x: 1.0, (16, 32)))
    trace = run(card.make(), made)
    assert trace.status == "diverged"
    assert "nan or infinity" in trace.message


def test_a_sampler_is_not_an_inversion() -> None:
    with pytest.raises(InputError, match="must be one that inverts"):
        invert(MIXTURE.denoiser(VPLinear()), data(), 5, "ddim")
    with pytest.raises(InputError, match="set these on the method"):
        invert(MIXTURE.denoiser(VPLinear()), data(), 5, hasten.get("ddim-inversion").make(), grid="uniform")


def test_ddim_inversion_is_first_order() -> None:
    denoiser = MIXTURE.denoiser(VPLinear())
    exact = [rms(denoiser.solve(ddim_invert(denoiser, data(32), steps)), data(32)) for steps in (40, 160)]
    assert 0.15 <= exact[1] / exact[0] <= 0.4


def test_ddim_inversion_by_hand() -> None:
    """Against `x_t = a_t (x_s/a_s + (sqrt(1/a_t^2 - 1) - sqrt(1/a_s^2 - 1)) eps)`, as diffusers' inverse scheduler."""
    schedule = VPLinear()
    denoiser = MIXTURE.denoiser(schedule)
    x, times = data(), (1e-3, 0.3, 1.0)
    for s, t in pairwise(times):
        a, b = schedule.alpha(t), schedule.alpha(s)
        x = a * (x / b + (math.sqrt(1 / a**2 - 1) - math.sqrt(1 / b**2 - 1)) * denoiser.eps(x, t))
    torch.testing.assert_close(ddim_invert(denoiser, data(), grid=times[::-1]), x, rtol=0, atol=1e-12)


def test_a_grid_that_ends_at_clean_data() -> None:
    schedule = FlowMatching(t_min=0.0)
    noise = invert(MIXTURE.denoiser(schedule), data(), 10, "ddim-inversion", grid="uniform")
    assert bool(noise.isfinite().all())


def test_calls_back_after_every_step() -> None:
    seen: list[int] = []
    invert(MIXTURE.denoiser(VPLinear()), data(), 4, callback=lambda state: seen.append(state.index))
    assert seen == [1, 2, 3, 4]


def test_ddim_inversion_is_that_of_diffusers(ladder, start) -> None:
    """Golden: `DDIMInverseScheduler` of diffusers 0.42, linear betas in float32, 19 steps between levels 0 and 950."""
    times = tuple(float(t) for t in range(950, -1, -50))
    golden = torch.tensor([[-2.6608383, -0.80478111], [1.22512411, 1.93791705]], dtype=torch.float64)
    torch.testing.assert_close(ddim_invert(ladder, start, grid=times), golden, rtol=0, atol=1e-5)
