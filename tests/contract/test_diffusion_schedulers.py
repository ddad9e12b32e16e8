"""What every sampler must do as a scheduler of diffusers: give `sample`'s own samples, be saved and be loaded."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.registry import entry
from hasten.diffusion import Denoiser, DiscreteVP, FlowMatching, Sampler, sample, scheduler
from hasten.diffusion.schedulers import HastenScheduler
from hasten.diffusion.stepwise import Stepwise

OUTSIDE = {"spectrum", "phase space"}
"""What a card may need that a scheduler cannot have: a model of another kind."""
REFUSED = r"chooses its times|several times at once"


def built(card: Card) -> Any:
    """The sampler of a card; None if it is none, or needs arguments or a model trained for it."""
    try:
        made = entry(card.id).build()
    except TypeError:
        return None
    return made if isinstance(made, Sampler) and not hasattr(made, "model") else None


CARDS = [
    card
    for card in hasten.methods("diffusion")
    if "sample" in card.kinds and not OUTSIDE & set(card.needs) and built(card) is not None
]


def drivable(card: Card) -> bool:
    """Whether the sampler plans its evaluations, one after the other, before it runs."""
    try:
        Stepwise(built(card), DiscreteVP.linear(), nfe=12)
    except InputError as error:
        if re.search(REFUSED, str(error)):
            return False
        raise
    return True


DRIVEN = [card for card in CARDS if drivable(card)]
every = pytest.mark.parametrize("card", DRIVEN, ids=lambda card: card.name)


def network(x: Tensor, t: Tensor) -> Tensor:
    return 0.4 * x + 0.3 * torch.sin(2.0 * x) * torch.cos(3.0 * t.reshape(-1, 1, 1, 1) / 1000.0)


def noise() -> Tensor:
    return torch.randn(3, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def drive(made: Any, x: Tensor, nfe: int, generator: Any = None) -> Tensor:
    made.set_timesteps(nfe)
    assert len(made.timesteps) <= nfe + 1
    for t in made.timesteps:
        x = made.scale_model_input(x, t)
        x = made.step(network(x, t.expand(len(x))), t, x, generator=generator).prev_sample
    return x


@every
def test_scheduler_gives_the_samples_of_sample(card: Card) -> None:
    denoiser = Denoiser(network, DiscreteVP.linear())
    expected = sample(denoiser, noise=noise(), sampler=card.name, nfe=12, generator=torch.Generator().manual_seed(1))
    made = scheduler(card.name)
    for _ in range(2):
        found = drive(made, noise(), 12, torch.Generator().manual_seed(1))
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@every
def test_scheduler_of_a_flow_gives_the_samples_of_sample(card: Card) -> None:
    flow = Denoiser(lambda x, t: network(x, 1000.0 * t), FlowMatching(shift=2.0), "velocity")
    generators = [torch.Generator().manual_seed(i) for i in range(6)]
    expected = sample(flow, noise=noise(), sampler=card.name, nfe=12, generator=generators[:3])
    for g, seed in zip(generators[3:], range(3)):
        g.manual_seed(seed)
    made = scheduler(card.name, prediction_type="flow_prediction", shift=2.0)
    torch.testing.assert_close(drive(made, noise(), 12, generators[3:]), expected, atol=1e-4, rtol=1e-4)


@every
def test_scheduler_is_saved_and_loaded(card: Card, tmp_path) -> None:
    made = scheduler(card.name, beta_schedule="scaled_linear", num_train_timesteps=50, prediction_type="v_prediction")
    made.save_pretrained(tmp_path)
    for again in (HastenScheduler.from_pretrained(tmp_path), HastenScheduler.from_config(made.config)):
        assert again.config.sampler == card.name
        assert len(again) == 50
        generators = [torch.Generator().manual_seed(2) for _ in range(2)]
        assert torch.equal(drive(again, noise(), 9, generators[0]), drive(made, noise(), 9, generators[1]))


def test_only_adaptive_and_parallel_samplers_are_refused() -> None:
    denoiser = Denoiser(network, DiscreteVP.linear())
    for card in CARDS:
        if card not in DRIVEN:
            with pytest.raises(InputError, match=REFUSED) as found:
                scheduler(card.name).set_timesteps(12)
            costs: dict[str, int] = {}
            sample(denoiser, noise=noise(), sampler=card.name, nfe=12, costs=costs)
            adaptive = "chooses" in str(found.value) and card.name == "dpm-solver-adaptive"
            assert adaptive or costs["rounds"] < costs["nfe"], card.name


@pytest.mark.parametrize("card", hasten.methods("diffusion"), ids=lambda card: card.name)
def test_other_methods_are_refused_at_the_door(card: Card) -> None:
    if card not in CARDS:
        with pytest.raises(InputError, match=r"no sampler|cannot be made|frequency|phase space|needs model"):
            scheduler(card.name).set_timesteps(12)
