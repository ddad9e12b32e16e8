"""What is refused before it costs an evaluation, what errors name, and that samples do not depend on the batch."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.card import Card
from hasten.core.errors import DivergedError, InputError
from hasten.core.registry import entry
from hasten.diffusion import (
    APG,
    CFG,
    Denoiser,
    DiscreteVP,
    FlowMatching,
    GuidedDenoiser,
    Sampler,
    VPCosine,
    VPLinear,
    guided_invert,
    invert,
    sample,
)
from hasten.diffusion.guidance.cfg import CFGPlusPlus
from hasten.numerics.mixture import classes


def usable(card: Card) -> bool:
    """Whether the card is that of a sampler which runs on any model, without training anything first."""
    if "sample" not in card.kinds or {"spectrum", "phase space"} & set(card.needs):
        return False
    try:
        made = entry(card.id).build()
    except TypeError:
        return False
    return isinstance(made, Sampler) and not hasattr(made, "model")


def own_grid(card: Card, grid: str) -> dict[str, Any]:
    """The option of this grid, for samplers that have any."""
    return {} if card.name == "dpm-solver-adaptive" else {"grid": grid}


CARDS = [card for card in hasten.methods("diffusion") if usable(card)]
every = pytest.mark.parametrize("card", CARDS, ids=lambda card: card.name)
STOCHASTIC = [
    ("ddim", {"eta": 1.0}),
    ("paradigms", {"base": "ddpm", "tol": 1e-6}),
    ("restoration-degradation", {"noise": "fresh"}),
]


class Counted:
    """A network that counts its calls."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        self.calls += 1
        return 0.4 * x


@every
@pytest.mark.parametrize(
    "options", [{"steps": 0}, {"steps": -3}, {"steps": 2.5}, {"nfe": 0}, {"grid": (0.1, 0.5, 0.9)}, {"grid": (0.9,)}]
)
def test_bad_plans_cost_no_evaluation(card: Card, options: dict[str, Any]) -> None:
    network = Counted()
    with pytest.raises(InputError, match=r"steps|nfe|grid"):
        sample(Denoiser(network, VPLinear()), (4, 2), sampler=card.name, **options)
    assert network.calls == 0


@every
def test_generators_are_checked_before_anything_is_drawn(card: Card) -> None:
    network, one = Counted(), torch.Generator()
    for bad in ([one], [one, one], [], [torch.Generator(), 3], 7):
        with pytest.raises(InputError, match="generator"):
            sample(Denoiser(network, VPLinear()), (2, 2), sampler=card.name, nfe=12, generator=bad)  # type: ignore[arg-type]
    assert network.calls == 0


@every
@pytest.mark.parametrize("guidance", [CFG(2.0), APG(2.0), CFGPlusPlus(0.5)], ids=lambda g: type(g).__name__)
def test_guidance_without_a_condition_costs_no_evaluation(card: Card, guidance: Any) -> None:
    network = Counted()
    with pytest.raises(InputError, match="condition"):
        sample(Denoiser(network, VPLinear()), (4, 2), sampler=card.name, nfe=24, guidance=guidance)
    assert network.calls == 0


@every
def test_a_prediction_that_tells_nothing_where_the_chain_begins_costs_no_evaluation(card: Card) -> None:
    """At T of a flow with alpha = 0, noise predictions tell nothing about the data."""
    network = Counted()
    flow = FlowMatching(T=1.0)
    with pytest.raises(InputError, match=r"alpha|signal"):
        sample(Denoiser(network, flow), (4, 2), sampler=card.name, nfe=12, **own_grid(card, "uniform"))
    assert network.calls == 0


@every
def test_wrong_shapes_are_named_with_step_time_and_level(card: Card) -> None:
    broken = Denoiser(lambda x, t: x[:, :1], VPLinear())
    with pytest.raises(InputError, match=r"(step|steps|attempt|round|rounds) \d.*shape .* at t.*sigma"):
        sample(broken, (4, 2), sampler=card.name, nfe=12)


@every
def test_nan_is_named_with_step_time_and_level(card: Card) -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(t[:, None] < 0.4, math.nan, 0.4 * x)

    with pytest.raises(DivergedError, match=r"(step|steps|attempt|round|rounds) \d.*nan.* at t.*sigma"):
        sample(Denoiser(network, VPLinear()), (4, 2), sampler=card.name, nfe=24)


def test_quantities_that_do_not_exist_cost_no_evaluation() -> None:
    x, network = torch.ones(2, 2), Counted()
    flow, cosine = FlowMatching(T=1.0, t_min=0.0), VPCosine(t_min=0.0)
    cases = [
        (Denoiser(network, flow, "epsilon").x0, 1.0, "x0 does not follow"),
        (Denoiser(network, flow, "x0").eps, 0.0, "epsilon does not follow"),
        (Denoiser(network, flow, "x0").split, 0.0, "epsilon does not follow"),
        (Denoiser(network, cosine, "epsilon").score, 0.0, "score does not exist"),
        (Denoiser(network, flow, "epsilon").x0, torch.tensor([0.5, 1.0]), "x0 does not follow"),
    ]
    for ask, t, match in cases:
        with pytest.raises(InputError, match=match):
            ask(x, t)
    assert network.calls == 0


@pytest.mark.parametrize("method", ["ddim-inversion", "bdia-inversion", "newton-inversion", "uni-inv"])
def test_inversion_refuses_guidance_that_it_would_not_undo(method: str) -> None:
    labels = torch.arange(4) % 3
    model = classes().denoiser(VPLinear()).given(labels)
    data = torch.ones(4, 8)
    with pytest.raises(InputError, match="guided_invert"):
        invert(GuidedDenoiser(model, CFGPlusPlus(0.6)), data, steps=5, method=method)
    with pytest.raises(InputError, match="depends on the steps before"):
        invert(GuidedDenoiser(model, APG(2.0)), data, steps=5, method=method)
    assert guided_invert(model, data, CFGPlusPlus(0.6), steps=5).shape == data.shape


def network(x: Tensor, t: Tensor) -> Tensor:
    """Elementwise, so that its own rounding does not depend on the batch."""
    level = t.reshape(-1, 1, 1, 1)
    return x * (0.3 + 0.2 * level / (1.0 + level)) / (1.0 + 0.1 * x * x)


def generators(count: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(100 + i) for i in range(count)]


@pytest.mark.parametrize(
    ("name", "hyper"),
    [*((card.name, {}) for card in CARDS), *STOCHASTIC],
    ids=[*(card.name for card in CARDS), *(f"{name} with noise" for name, _ in STOCHASTIC)],
)
def test_one_generator_per_sample_makes_samples_independent_of_the_batch(name: str, hyper: dict[str, Any]) -> None:
    """Adaptive and parallel samplers follow the worst sample of a batch, so that theirs agree to tolerance only."""
    denoiser, made = Denoiser(network, VPLinear()), entry(f"diffusion.{name}").build(**hyper)

    def draw(picked: list[torch.Generator]) -> Tensor:
        shape = (len(picked), 1, 4, 4)
        return sample(denoiser, shape, sampler=made, nfe=24, generator=picked, dtype=torch.float64)

    spent: dict[str, int] = {}
    sample(denoiser, (2, 1, 4, 4), sampler=made, nfe=24, costs=spent)
    shared = name == "dpm-solver-adaptive" or spent["rounds"] < spent["nfe"]
    whole = draw(generators(5))
    for cuts in ((0, 2, 5), (0, 1, 2, 3, 4, 5)):
        parts = [draw(generators(5)[a:b]) for a, b in pairwise(cuts)]
        if shared:
            torch.testing.assert_close(torch.cat(parts), whole, atol=0.3, rtol=0.1)
        else:
            assert torch.equal(torch.cat(parts), whole)
    assert not torch.equal(whole[0], whole[1])


def test_fresh_noise_is_each_samples_own() -> None:
    """With the same start, samples differ by their generators, and one does not see another's."""
    start = torch.ones(3, 1, 3, 3)
    denoiser = Denoiser(network, DiscreteVP.linear(100))
    options: dict[str, Any] = {"noise": start, "sampler": "ddim", "steps": 8, "eta": 1.0}
    three = sample(denoiser, generator=generators(3), **options)
    changed = [generators(3)[0], torch.Generator().manual_seed(7), generators(3)[2]]
    other = sample(denoiser, generator=changed, **options)
    assert torch.equal(other[[0, 2]], three[[0, 2]])
    assert not torch.equal(other[1], three[1])
