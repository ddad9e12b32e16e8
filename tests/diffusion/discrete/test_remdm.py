"""Masked samplers against published code, the law they draw from, and the sequences they must leave alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.errors import DivergedError, InputError
from hasten.core.kinds.unmask import Unmasking
from hasten.core.run import run
from hasten.diffusion import MDLM, ForwardBackward, MaskedDenoiser, ReMDM, unmask
from hasten.diffusion.discrete.masked import Move, categorical
from hasten.diffusion.discrete.remdm import conf_shares
from hasten.numerics.markov_chain import MarkovChainPosterior
from hasten.numerics.masked_denoiser import nucleus

NAMES = [card.name for card in hasten.methods("diffusion") if "unmask" in card.kinds]
CHAIN = MarkovChainPosterior.ring()

# kuleshov-group/remdm at f830d65, `_ddpm_caching_update` in float64: times t and s = t - dt, probability that a
# revealed token is masked, and that a masked one is revealed as the first token, which has probability 1/2.
PUBLISHED = [
    (MDLM(), 0.6, 0.05, 0.0, 0.041666666666666706),
    (ForwardBackward(), 0.6, 0.05, 0.1250000000000001, 0.08333333333333341),
    (ReMDM("cap"), 0.6, 0.05, 0.02, 0.04833333333333338),
    (ReMDM("cap"), 0.03, 0.02, 0.010309278350515474, 0.5),
    (ReMDM("rescale", 0.1), 0.3, 0.05, 0.03571428571428572, 0.12500000000000008),
    (ReMDM("loop"), 0.8, 0.05, 0.0, 0.0833333333333334),
    (ReMDM("loop"), 0.3, 0.05, 0.02, 0.0900000000000001),
    (ReMDM("loop"), 0.04, 0.02, 0.0, 0.25),
]


def draw(name: str = "remdm-cap", shape=(32, 16), steps: int = 24, seed: int = 0, denoiser=None, **options) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    start = options.pop("start", None)
    where = {"start": start} if start is not None else {"shape": shape}
    return unmask(denoiser or CHAIN.denoiser(), sampler=name, steps=steps, generator=generator, **where, **options)


@pytest.mark.parametrize(("method", "t", "dt", "remask", "reveal"), PUBLISHED)
def test_probabilities_are_the_published_ones(method: MDLM, t: float, dt: float, remask: float, reveal: float) -> None:
    move = method.move(t, t - dt)
    assert move.sigma == pytest.approx(remask, abs=1e-12)
    assert 0.5 * move.reveal(move.sigma) == pytest.approx(reveal, abs=1e-12)


def test_confidence_is_shared_as_published() -> None:
    trust = torch.tensor([[0.9, math.inf, 0.4, math.inf]], dtype=torch.float64)
    found = conf_shares(trust) * ReMDM("conf").move(0.3, 0.25).sigma
    assert found[0].tolist() == pytest.approx([0.13483595314219482, 0.0, 0.22230690400066236, 0.0], abs=1e-12)
    assert not conf_shares(torch.full((2, 3), math.inf)).any()


@pytest.mark.parametrize("strategy", ["cap", "rescale"])
def test_without_strength_it_is_mdlm(strategy: str) -> None:
    assert torch.equal(draw(f"remdm-{strategy}", eta=0.0), draw("mdlm"))


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_revealed_and_given_ones_stay(name: str) -> None:
    start = CHAIN.sample(64, 16, torch.Generator().manual_seed(3))
    given = torch.arange(16) % 3 == 0
    start[:, ~given] = CHAIN.states
    costs: dict[str, int] = {}
    before = start.clone()
    out = draw(name, start=start, costs=costs)
    assert torch.equal(start, before)
    assert torch.equal(out[:, given], start[:, given])
    assert bool((out < CHAIN.states).all())
    assert 1 <= costs["nfe"] <= 24
    assert torch.equal(out, draw(name, start=start))
    assert not torch.equal(out, draw(name, start=start, seed=1))


@pytest.mark.parametrize("name", ["mdlm", "remdm-cap", "remdm-rescale", "forward-backward"])
def test_marginals_are_those_of_independent_tokens(name: str) -> None:
    """Where tokens are independent, remasking keeps each one's law and the share of masks at every time."""
    law = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    denoiser = MaskedDenoiser(lambda x: law.log().expand(*x.shape, 3), mask=3)
    out = draw(name, (4000, 4), 12, denoiser=denoiser)
    share = torch.bincount(out.flatten(), minlength=3) / out.numel()
    assert float((share - law).abs().max()) < 4 * math.sqrt(0.25 / out.numel())
    instance = Unmasking(denoiser, torch.full((4000, 4), 3), lambda x: 0.0)
    method = hasten.get(f"diffusion.{name}").make(steps=12)
    state = method.init(instance, torch.Generator().manual_seed(0))
    for move in state.plan[:-1]:
        method.step(instance, state)
        revealed = float((state.x != 3).double().mean())
        assert revealed == pytest.approx(move.alpha_s, abs=4 * math.sqrt(0.25 / out.numel()))


def test_one_token_per_step_draws_from_the_chain() -> None:
    """In the limit of many steps the draws are exact: pairs of neighbours have the chain's law."""
    chain = MarkovChainPosterior(torch.tensor([[0.9, 0.1], [0.3, 0.7]]), torch.tensor([0.75, 0.25]))
    out = draw("mdlm", (3000, 3), 200, denoiser=chain.denoiser())
    pairs = torch.bincount(2 * out[:, 0] + out[:, 1], minlength=4) / 3000
    exact = (chain.initial[:, None] * chain.transition).flatten()
    assert float((pairs - exact).abs().max()) < 0.03


def test_remasking_corrects_mistakes() -> None:
    start = [CHAIN.impossible(draw(name, (256, 32), 64, **hyper)) for name, hyper in (("mdlm", {}), ("remdm-cap", {}))]
    assert start[1] < 0.8 * start[0]


def test_evaluations_are_saved_where_nothing_changed() -> None:
    costs: dict[str, int] = {}
    draw("mdlm", (1, 4), 100, costs=costs)
    assert costs["nfe"] <= 6
    timed = MaskedDenoiser(lambda x, t: CHAIN(x).log() * t.mean().ceil(), mask=8, timed=True)
    draw("mdlm", (1, 4), 100, costs=costs, denoiser=timed)
    assert costs["nfe"] == 100


def test_races_on_the_ready_problem() -> None:
    trace = run(hasten.get("remdm-cap").make(), hasten.problem("ring-chain:length=8,batch=16"), budget=32, target=-1.0)
    assert trace.status == "budget"
    assert len(trace.metric) == 3


def test_nucleus_keeps_the_likeliest() -> None:
    law = torch.tensor([[0.1, 0.6, 0.3], [0.98, 0.01, 0.01]])
    torch.testing.assert_close(nucleus(law, 0.95), torch.tensor([[0.0, 2 / 3, 1 / 3], [1.0, 0.0, 0.0]]))
    assert nucleus(law, 1.0) is law


def test_draws_follow_the_law() -> None:
    law = torch.tensor([0.05, 0.9, 0.0, 0.05], dtype=torch.float64)
    drawn = categorical(law.expand(20000, 4), torch.Generator().manual_seed(0))
    assert float((torch.bincount(drawn, minlength=4) / 20000 - law).abs().max()) < 0.01
    assert not (drawn == 2).any()


def test_the_mask_is_never_drawn_and_bad_networks_are_named() -> None:
    keen = MaskedDenoiser(lambda x: torch.tensor([0.0, 0.0, 50.0]).expand(*x.shape, 3), mask=2)
    assert bool((draw(denoiser=keen) < 2).all())
    with pytest.raises(InputError, match="logits of shape"):
        draw(denoiser=MaskedDenoiser(lambda x: x, mask=2))
    with pytest.raises(DivergedError, match=r"at t=1"):
        draw(denoiser=MaskedDenoiser(lambda x: torch.full((*x.shape, 3), math.nan), mask=2))


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("strategy", lambda: ReMDM("none")),
        ("eta", lambda: ReMDM("cap", 1.5)),
        ("t_off must be less", lambda: ReMDM("loop", t_on=0.3, t_off=0.3)),
        ("alpha_on", lambda: ReMDM("loop", alpha_on=1.0)),
        ("nucleus_p", lambda: MDLM(nucleus_p=0.0)),
        ("steps", lambda: MDLM(steps=0)),
        ("either shape", lambda: unmask(CHAIN.denoiser())),
        ("either steps", lambda: unmask(CHAIN.denoiser(), (1, 4), steps=4, nfe=4)),
        ("no sampler of masked", lambda: unmask(CHAIN.denoiser(), (1, 4), "ddim")),
        ("integer tokens", lambda: unmask(CHAIN.denoiser(), start=torch.zeros(2, 3))),
        ("mask", lambda: MaskedDenoiser(lambda x: x, mask=-1)),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_strength_is_clipped_at_what_is_allowed() -> None:
    move = ReMDM("cap", 1.0).move(0.2, 0.1)
    assert move.sigma == pytest.approx(0.1 / 0.8)
    assert move.reveal(move.sigma) == pytest.approx(1.0)
    assert Move(1.0, 0.0, 0.1, 0.0).sigma_max == 1.0
    assert ReMDM("loop", 0.5).move(0.3, 0.2).sigma == pytest.approx(1 / 9)
