"""Every card tells the truth: its code runs as printed, its ranges are accepted, its paper has a claim."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.core.card import Card, Choice, Range
from hasten.core.catalogue import problems
from hasten.core.claim import claims
from hasten.core.registry import FAMILIES

CARDS = [card for card in hasten.methods() if card.family in FAMILIES]


def given(family: str) -> dict[str, Any]:
    """What a card's code may take for granted: what the user of that family has at hand, under its usual name."""
    generator = torch.Generator().manual_seed(0)
    names: dict[str, Any] = {"hasten": hasten, "torch": torch}
    if family == "optim":
        inputs, labels = torch.randn(16, 4, generator=generator), torch.randint(0, 3, (16,), generator=generator)
        model = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3))
        loss_fn = nn.functional.cross_entropy
        loss_fn(model(inputs), labels).backward()
        names |= {"model": model, "loss_fn": loss_fn, "loader": [(inputs, labels)] * 3, "total_steps": 100}
        names |= {"optimizer": torch.optim.AdamW(model.parameters(), lr=1e-3)}
    elif family == "solve":
        x0 = torch.full((3,), 0.5, dtype=torch.float64)
        names |= {"fun": lambda x: (x - 1).square().sum() + 0.1 * x.pow(4).sum(), "x0": x0}
        names |= {"h": lambda x: 0.1 * x.abs().sum(), "prox": _soft}
        matrix = torch.tensor([[0.1, 1.0], [-1.0, 0.1]], dtype=torch.float64)
        names |= {"F": lambda z: matrix @ z, "z0": torch.ones(2, dtype=torch.float64), "L": 1.1}
        mass = torch.full((4,), 0.25, dtype=torch.float64)
        names |= {"a": mass, "b": mass, "M": torch.rand(4, 4, generator=generator, dtype=torch.float64), "reg": 0.1}
        source = torch.randn(40, 3, generator=generator, dtype=torch.float64)
        names |= {"source": source, "target": source + 0.01}
    elif family == "diffusion":
        from hasten.diffusion import VPLinear
        from hasten.numerics.markov_chain import MarkovChainPosterior
        from hasten.numerics.mixture import circle
        from hasten.problems.digits_diffusion import digits_denoiser

        names |= {"denoiser": circle(3, 2).denoiser(VPLinear())}
        names |= {"masked_denoiser": MarkovChainPosterior.ring().denoiser()}
        names |= {"transformer": digits_denoiser()}
    return names


def _soft(v: Tensor, t: float) -> Tensor:
    return v.sign() * (v.abs() - 0.1 * t).clamp(min=0)


def some(values: Range) -> Any:
    """A value inside a range."""
    if isinstance(values, Choice):
        return values.options[-1]
    if isinstance(values.low, int) and isinstance(values.high, int):
        return values.low
    return (values.low * values.high) ** 0.5 if values.log else 0.5 * (values.low + values.high)


def hypers(card: Card) -> list[Mapping[str, Any]]:
    """The defaults, and what tuning might come to."""
    tuned = {name: some(values) for name, values in card.search_space.items()}
    return [{}, tuned] if tuned else [{}]


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_code_of_card_runs(card: Card) -> None:
    for hyper in hypers(card):
        code = card.code(hyper)
        assert "{" not in card.code({}).replace("{}", ""), f"{card.id} has a placeholder that is never filled"
        assert all(f"{name}=" in code for name in hyper), f"{card.id} does not show its tuned hyper-parameters:\n{code}"
        torch.manual_seed(0)
        exec(compile(code, f"<use of {card.id}>", "exec"), given(card.family))


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_method_takes_what_its_card_tunes(card: Card) -> None:
    for name, values in card.search_space.items():
        edges = values.options if isinstance(values, Choice) else (values.low, values.high)
        for value in edges:
            made = card.make(**{name: value})
            assert made.card.id == card.id
    with pytest.raises((TypeError, ValueError)):
        _run_with(card, {"no_such_hyper_parameter": 1})


def _run_with(card: Card, hyper: Mapping[str, Any]) -> None:
    """Optimizers meet their arguments only when a run begins."""
    method = card.make(**hyper)
    if card.family == "optim":
        trace = hasten.run(method, hasten.problem("digits-mlp:width=4"), budget=1)
        if trace.status == "error":
            raise TypeError(trace.message)


@pytest.mark.parametrize("card", CARDS, ids=lambda card: card.id)
def test_card_is_complete(card: Card) -> None:
    assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", card.name)
    assert re.fullmatch(r"(\d{4}\.\d{4,5}|[a-z.-]+/\d{7})?", card.arxiv)
    assert 1600 <= card.year <= 2100
    assert card.authors.strip()
    for text in (card.summary, card.title, card.when, card.cost):
        assert text == text.strip()
        assert "\n" not in text
    assert len(card.summary) < 200, "the summary is one sentence of a table"
    assert set(card.kinds) <= {entry.kind for entry in problems()}, f"no ready problem for one of {card.kinds}"


def test_every_method_of_a_paper_has_a_claim() -> None:
    """A paper counts as covered when one of its methods carries the claim."""
    claimed = {hasten.get(made.method).paper_id for made in claims()} | {made.paper_id for made in claims()}
    without = sorted({card.paper_id for card in CARDS if card.paper_id is not None} - claimed)
    assert without == [], f"papers without a claim: {without}"


def test_every_claim_belongs_to_a_method() -> None:
    for made in claims():
        card = hasten.get(made.method)
        assert card.id == made.method, f"{made.id} must name its method in full"
        assert made.paper_id in (None, card.paper_id), f"{made.id} is of paper {made.paper_id}, {card.id} is not"
