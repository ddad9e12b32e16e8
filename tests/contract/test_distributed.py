"""What every federated method must do: arrive, repeat itself, count its work and its bytes, refuse other kinds."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch

import hasten
from hasten.core.card import Choice, Integer, Real
from hasten.core.catalogue import problem
from hasten.core.errors import MismatchError
from hasten.core.problem import Problem
from hasten.core.registry import methods
from hasten.core.run import run

CARDS = methods("distributed")
IDS = [card.name for card in CARDS]
QUADRATIC = problem("hetero-quadratic:n=6,dim=10,zeta=1")
DIGITS = problem("digits-federated:clients=4,width=8")

pytestmark = pytest.mark.parametrize("card", CARDS, ids=IDS)


def drive(card: hasten.Card, task: Problem, rounds: int, seed: int = 0, **hyper: Any) -> tuple[Any, Any]:
    instance: Any = task.build(seed)
    method = card.make(**hyper)
    state = method.init(instance, torch.Generator().manual_seed(seed))
    for _ in range(rounds):
        state = method.step(instance, state)
    return instance, state


@pytest.mark.parametrize("task", [QUADRATIC, DIGITS], ids=lambda task: task.name)
def test_makes_progress(card: hasten.Card, task: Problem) -> None:
    trace = run(card.make(lr=0.1), task, budget=60, target=-float("inf"), every=10)
    assert trace.status == "budget", trace.message
    assert trace.final < 0.95 * trace.metric[0]


def test_default_hyper_parameters_run(card: hasten.Card) -> None:
    for task in (QUADRATIC, DIGITS):
        trace = run(card.make(), task, budget=3)
        assert trace.status == "budget", trace.message


def test_repeats_itself_and_depends_on_the_seed(card: hasten.Card) -> None:
    first, second, other = (run(card.make(lr=0.1), DIGITS, seed=seed, budget=6, every=1) for seed in (3, 3, 4))
    assert first.metric == second.metric
    assert first.bytes_sent == second.bytes_sent
    assert first.metric != other.metric


def test_answer_is_a_flat_vector_that_later_rounds_leave_alone(card: hasten.Card) -> None:
    instance, state = drive(card, DIGITS, 1, lr=0.1)
    start, kept, answer = instance.x0.clone(), state.x, state.x.clone()
    method = card.make(lr=0.1)
    assert state.x.shape == instance.x0.shape
    assert state.x.dtype == instance.x0.dtype
    for _ in range(2):
        state = method.step(instance, state)
    assert torch.equal(kept, answer)
    assert torch.equal(instance.x0, start)
    assert not torch.equal(state.x, answer)


def test_counts_gradients_and_bytes_both_ways(card: hasten.Card) -> None:
    once, _ = drive(card, QUADRATIC, 1, lr=0.1)
    many, _ = drive(card, QUADRATIC, 4, lr=0.1)
    each = (many.calls["gradient"] - once.calls["gradient"]) / 3
    assert each >= QUADRATIC.build(0).n  # type: ignore[attr-defined]
    for wire in ("up_bytes", "down_bytes"):
        assert getattr(many, wire) > getattr(once, wire) > 0
    assert many.bytes_sent == many.up_bytes + many.down_bytes


def test_never_sends_more_up_than_the_dense_baseline_per_round(card: hasten.Card) -> None:
    once, _ = drive(card, QUADRATIC, 1, lr=0.1)
    many, _ = drive(card, QUADRATIC, 4, lr=0.1)
    assert (many.up_bytes - once.up_bytes) / 3 <= 6 * 10 * 8


def test_one_client_is_enough(card: hasten.Card) -> None:
    trace = run(card.make(lr=0.1), problem("hetero-quadratic:n=1,dim=4"), budget=5)
    assert trace.status == "budget", trace.message


def test_one_dimension_is_enough(card: hasten.Card) -> None:
    task = problem("hetero-quadratic:n=3,dim=1")
    assert run(card.make(lr=0.1), task, budget=20, target=-1.0).final < 1.0


def test_search_space_names_real_hyper_parameters(card: hasten.Card) -> None:
    for name, values in card.search_space.items():
        edges = values.options if isinstance(values, Choice) else (values.low, values.high)
        assert isinstance(values, (Real, Integer, Choice))
        for value in edges:
            assert run(card.make(**{name: value}), QUADRATIC, budget=2).status != "error"


def test_refuses_other_kinds(card: hasten.Card) -> None:
    assert card.kinds == ("federate",)
    with pytest.raises(MismatchError, match="serves federate problems"):
        run(card.make(), dataclasses.replace(QUADRATIC, kind="minimise"))
