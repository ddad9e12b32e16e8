"""What every solver must do: arrive, repeat itself, count its work, refuse what it cannot serve."""

from __future__ import annotations

import dataclasses

import pytest
import torch

import hasten
from hasten.core.card import Choice, Integer, Real
from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.kinds.minimise import minimisation
from hasten.core.kinds.saddle import saddle
from hasten.core.problem import Problem
from hasten.core.registry import entry, methods
from hasten.core.run import run

CARDS = methods("solve")
IDS = [card.name for card in CARDS]
ORACLES = {"minimise": "gradient", "saddle": "operator", "transport": "sinkhorn", "register": "query"}


def fitting(card: hasten.Card) -> Problem:
    """A ready problem that the method serves, small."""
    kind = card.kinds[0]
    if kind == "minimise":
        return problem("diabetes-lasso" if card.name in ("fista", "proximal-gradient") else "quadratic:dim=10,cond=20")
    return problem(
        {
            "saddle": "matrix-game:dim=4",
            "transport": "random-transport:n=12,eta=60",
            "register": "bumpy-registration:source=1000,target=1000,angle=0.2",
        }[kind]
    )


@pytest.mark.parametrize("card", CARDS, ids=IDS)
def test_arrives_on_a_ready_problem(card: hasten.Card) -> None:
    trace = run(card.make(), fitting(card), budget=100, target=-float("inf"))
    assert trace.status in ("budget", "done"), trace.message
    assert trace.final < 0.5 * trace.metric[0]
    assert trace.calls[ORACLES[card.kinds[0]]][-1] > 0


@pytest.mark.parametrize("card", CARDS, ids=IDS)
def test_repeats_itself(card: hasten.Card) -> None:
    first, second = (run(card.make(), fitting(card), seed=3, budget=15) for _ in range(2))
    assert first.metric == second.metric
    assert first.calls == second.calls


@pytest.mark.parametrize("card", CARDS, ids=IDS)
def test_a_step_leaves_the_last_answer_alone(card: hasten.Card) -> None:
    instance = fitting(card).build(0)
    method = card.make()
    state = method.init(instance, torch.Generator().manual_seed(0))
    kept, answer = state.x, state.x.clone()
    for _ in range(3):
        state = method.step(instance, state)
    assert torch.equal(kept, answer)
    assert not torch.equal(state.x, answer)


@pytest.mark.parametrize("card", CARDS, ids=IDS)
def test_search_space_names_arguments_and_fits_them(card: hasten.Card) -> None:
    fields = {field.name for field in dataclasses.fields(entry(card.id).target)}
    for name, space in card.search_space.items():
        assert name in fields
        ends = space.options if isinstance(space, Choice) else (space.low, space.high)
        for value in ends:
            card.make(**{name: value})


@pytest.mark.parametrize("card", CARDS, ids=IDS)
def test_refuses_numbers_outside_their_range(card: hasten.Card) -> None:
    for name, space in card.search_space.items():
        if isinstance(space, (Real, Integer)):
            for value in (-1, float("nan"), "fast"):
                with pytest.raises(InputError, match=name):
                    card.make(**{name: value})


@pytest.mark.parametrize("card", CARDS, ids=IDS)
def test_the_code_on_the_card_compiles_and_names_exist(card: hasten.Card) -> None:
    hyper = dict.fromkeys(card.search_space, 1)
    compile(card.code(hyper), card.id, "exec")
    line = card.code().splitlines()[0]
    scope: dict[str, object] = {}
    exec(line, scope)
    assert len(scope) > 1


@pytest.mark.parametrize(
    "card", [card for card in CARDS if card.kinds[0] in ("minimise", "saddle")], ids=lambda c: c.name
)
def test_float32_stays_float32(card: hasten.Card) -> None:
    x0 = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float32)
    if card.kinds[0] == "minimise":
        made = minimisation("bowl", lambda x: (x - 1).square().sum() + 0.1 * x.pow(4).sum(), x0)
    else:
        made = saddle("pull", lambda z: z, x0, lipschitz=1.0)
    instance = made.build(0)
    method = card.make()
    state = method.init(instance, torch.Generator().manual_seed(0))
    for _ in range(20):
        if method.done(state):
            break
        state = method.step(instance, state)
    assert state.x.dtype == torch.float32
    assert instance.metric(state.x) < instance.metric(x0)


@pytest.mark.parametrize(
    "card", [card for card in CARDS if card.kinds[0] in ("minimise", "saddle")], ids=lambda c: c.name
)
def test_oracle_output_that_is_not_finite_is_no_result(card: hasten.Card) -> None:
    x0 = torch.ones(2, dtype=torch.float64)
    if card.kinds[0] == "minimise":
        made = minimisation("hole", lambda x: (x * torch.nan).sum(), x0, metric=lambda x: 1.0)
    else:
        made = saddle("hole", lambda z: z * torch.inf, x0, lipschitz=1.0, metric=lambda z: 1.0)
    result = hasten.solve.solve(made, card.make())
    assert (result.status, result.success) == (-1, False)
    assert "finite" in result.message


@pytest.mark.parametrize(
    "card", [card for card in CARDS if card.kinds[0] in ("minimise", "saddle")], ids=lambda c: c.name
)
def test_integers_are_refused(card: hasten.Card) -> None:
    x0 = torch.ones(2, dtype=torch.int64)
    made = minimisation("bowl", lambda x: (x * x).sum(), x0)
    if card.kinds[0] == "saddle":
        with pytest.raises(InputError, match="z0"):
            saddle("pull", lambda z: z, x0)
        return
    with pytest.raises(InputError, match="x0"):
        hasten.solve.solve(made, card.make())
