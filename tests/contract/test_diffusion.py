"""What every sampler must do, whatever its rule: plan within its means, count honestly, treat samples alike."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.card import Card
from hasten.core.catalogue import problem
from hasten.core.errors import DivergedError, InputError
from hasten.core.kinds.sample import Sampling
from hasten.core.run import run
from hasten.diffusion import EDM, VE, Denoiser, DiscreteVP, FlowMatching, Schedule, VPCosine, VPLinear, sample
from hasten.numerics.mixture import circle

CARDS = [card for card in hasten.methods("diffusion") if "sample" in card.kinds and not card.needs]
"""Samplers of any model; what needs more than a denoiser (knowledge of the data's law, say) has tests of its own."""
OWN_GRID = {"dpm-solver-fast", "dpm-solver-adaptive"}
"""Samplers that choose their own times, so that none can be given to them."""
FIXED = [card for card in CARDS if card.name not in OWN_GRID | {"paradigms", "accelerated-ddim"}]
"""Samplers whose steps all cost the same."""
SCHEDULES = [VPLinear(), VPCosine(), DiscreteVP.linear(100), VE(), EDM(), FlowMatching()]
MIXTURE = circle()
every = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)


def noise(batch: int = 6, dtype: torch.dtype = torch.float64, seed: int = 0) -> Tensor:
    return torch.randn(batch, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def draw(card: Card, start: Tensor, nfe: int = 24, schedule: Schedule | None = None, **options: Any) -> Tensor:
    return sample(MIXTURE.denoiser(schedule or VPLinear()), noise=start, sampler=card.name, nfe=nfe, **options)


@every
@pytest.mark.parametrize("nfe", [4, 5, 6, 7, 9, 24, 33])
def test_spends_no_more_than_it_may(card: Card, nfe: int) -> None:
    costs: dict[str, int] = {}
    out = draw(card, noise(), nfe, costs=costs)
    assert 1 <= costs["nfe"] <= nfe
    assert costs["rounds"] <= costs["nfe"]
    assert out.shape == (6, 2)
    assert bool(out.isfinite().all())


@pytest.mark.parametrize("card", FIXED, ids=lambda card: card.name)
def test_spends_what_its_steps_cost(card: Card) -> None:
    method = card.make()
    costs: dict[str, int] = {}
    sample(MIXTURE.denoiser(VPLinear()), noise=noise(), sampler=card.name, steps=7, costs=costs)
    assert costs == {"nfe": 7 * method.evaluations, "rounds": 7 * method.evaluations}


@every
def test_error_falls_with_evaluations(card: Card) -> None:
    trace = run(card.make(), problem("gaussian-mixture-score:batch=32"), target=-math.inf)
    assert trace.status == "budget", trace.message
    assert all(spent <= rung for spent, rung in zip(trace.calls["nfe"], (4, 6, 8, 12, 16, 24, 32, 48, 64, 96)))
    assert len(trace.metric) == 10
    assert trace.metric[-1] < 0.15 * trace.metric[0]
    assert trace.metric[-1] < 0.1


@every
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
def test_samples_on_every_schedule(card: Card, schedule: Schedule) -> None:
    usual = {"grid": "karras"} if isinstance(schedule, EDM) else {}
    out = draw(card, schedule.noise_scale * noise(), 60, schedule, **usual)
    exact = MIXTURE.denoiser(schedule).solve(schedule.noise_scale * noise(), steps=200)
    near = (out - exact).norm(dim=1).median()
    assert float(near) < 0.7, "samples are nowhere near the exact solution"


@every
def test_single_and_double_precision_agree(card: Card) -> None:
    start = noise(dtype=torch.float32)
    single, double = draw(card, start), draw(card, start.double())
    assert single.dtype == torch.float32
    torch.testing.assert_close(single.double(), double, atol=1e-4, rtol=1e-4)


@every
def test_samples_do_not_see_each_other(card: Card) -> None:
    """Adaptive step sizes and Picard windows follow the worst sample, so those two are alike only in their order."""
    start = noise()
    together = draw(card, start)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    torch.testing.assert_close(draw(card, start[order]), together[order], atol=1e-10, rtol=1e-10)
    alone = draw(card, start[:1])
    assert alone.shape == (1, 2)
    if card.name not in {"dpm-solver-adaptive", "paradigms"}:
        torch.testing.assert_close(alone, together[:1], atol=1e-10, rtol=1e-10)


@every
def test_shape_of_samples_is_free(card: Card) -> None:
    denoiser = Denoiser(lambda x, t: 0.5 * x, VPLinear())
    flat = noise(12).reshape(3, 8)
    out = sample(denoiser, noise=flat, sampler=card.name, nfe=12)
    image = sample(denoiser, noise=flat.reshape(3, 2, 2, 2), sampler=card.name, nfe=12)
    torch.testing.assert_close(image.reshape(3, 8), out)


@every
def test_equal_generators_give_equal_samples(card: Card) -> None:
    def once(seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return sample(MIXTURE.denoiser(VPLinear()), (5, 2), sampler=card.name, nfe=12, generator=generator)

    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))


@every
def test_start_noise_and_network_are_left_alone(card: Card) -> None:
    start = noise()
    before = start.clone()
    layer = torch.nn.Linear(2, 2).double()
    out = sample(Denoiser(lambda x, t: layer(x) * 0.1, VPLinear()), noise=start, sampler=card.name, nfe=12)
    assert torch.equal(start, before)
    assert not out.requires_grad


@every
def test_bad_grids_are_refused(card: Card) -> None:
    if card.name in OWN_GRID:
        with pytest.raises(InputError, match="chooses"):
            card.make(grid=(1.0, 0.5, 0.1))
    else:
        denoiser = MIXTURE.denoiser(VPLinear())
        for grid in ((0.1, 0.5, 1.0), (1.0, 0.5, 0.5), (1.0,), (1.0, math.nan), (3.0, 0.5), (1.0, -0.5)):
            with pytest.raises(InputError, match="grid"):
                sample(denoiser, noise=noise(), sampler=card.name, grid=grid)
        times = (1.0, 0.6, 0.3, 0.01)
        assert sample(denoiser, noise=noise(), sampler=card.name, grid=times).shape == (6, 2)
    with pytest.raises(InputError, match="grid"):
        card.make(grid="linear")


@every
def test_wrong_shape_of_the_network_is_named(card: Card) -> None:
    with pytest.raises(InputError, match=r"shape .* at t"):
        sample(Denoiser(lambda x, t: x[:, :1], VPLinear()), noise=noise(), sampler=card.name, nfe=12)


@every
def test_step_and_noise_level_of_a_nan_are_named(card: Card) -> None:
    schedule = VPLinear()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] < 0.4, math.nan, 0.5 * x)

    with pytest.raises(DivergedError, match=r"(step|steps|attempt|round) \d.*nan or infinity.* at t"):
        sample(Denoiser(network, schedule), noise=noise(), sampler=card.name, nfe=24)


@every
def test_a_run_with_a_broken_network_ends_as_diverged(card: Card) -> None:
    broken = Denoiser(lambda x, t: x * math.inf, VPLinear())
    made = hasten.Problem("broken", "sample", lambda seed: Sampling(broken, noise(), lambda x: 1.0, (8, 16)))
    trace = run(card.make(), made)
    assert trace.status == "diverged"
    assert "nan or infinity" in trace.message


@every
def test_too_few_evaluations_are_refused_with_the_number(card: Card) -> None:
    made = card.make()
    least = made.evaluations if card.name in {entry.name for entry in FIXED} else 1
    for nfe in range(1, least):
        with pytest.raises(InputError, match=f"needs {least} evaluations per step, but only {nfe}"):
            draw(card, noise(), nfe)
    assert draw(card, noise(), max(least, 3)).shape == (6, 2)


@every
def test_methods_are_values(card: Card) -> None:
    assert card.make() == card.make()
    assert hash(card.make()) == hash(card.make())
    assert card.make().card.id == card.id
    if card.name not in OWN_GRID:
        assert replace(card.make(), steps=3) != card.make()
        with pytest.raises(InputError, match="steps"):
            card.make(steps=0)
