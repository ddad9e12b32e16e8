"""Tuning: the points to try are fixed in advance; the ranking of trials is what a user would say."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

import hasten
from hasten.core import tuning
from hasten.core.run import Budget
from hasten.core.trace import Trace

CARD = hasten.Card(
    name="tuned",
    family="zoo",
    title="t",
    authors="a",
    year=2000,
    summary="s",
    cost="c",
    when="w",
    kinds=("train",),
    use="u",
    search_space={
        "lr": hasten.LogReal(1e-5, 1.0),
        "decay": hasten.Real(0.0, 0.5),
        "k": hasten.Integer(1, 9),
        "kind": hasten.Choice("a", "b"),
    },
)


@given(st.integers(1, 40), st.integers(0, 10**6))
def test_points_are_in_range_and_depend_on_nothing_else(trials: int, seed: int) -> None:
    points = tuning.candidates(CARD, trials, {}, seed)
    assert points == tuning.candidates(CARD, trials, {}, seed)
    assert len(points) == trials
    assert points[0] == {}
    for point in points[1:]:
        assert 1e-5 <= point["lr"] <= 1.0
        assert 0.0 <= point["decay"] <= 0.5
        assert point["k"] in range(1, 10)
        assert point["kind"] in ("a", "b")


def test_points_spread_over_the_decades() -> None:
    rates = sorted(math.log10(point["lr"]) for point in tuning.candidates(CARD, 17, {}, 0)[1:])
    gaps = [b - a for a, b in zip([-5.0, *rates], [*rates, 0.0])]
    # sixteen random points leave a gap of more than 1.2 decades in nearly half of all draws; quasi-random ones do not
    assert max(gaps) < 1.0


def test_fixed_hyper_parameters_stay() -> None:
    points = tuning.candidates(CARD, 6, {"lr": 0.3, "kind": "b"}, 0)
    assert points[0] == {"lr": 0.3, "kind": "b"}
    assert all(point["lr"] == 0.3 and point["kind"] == "b" for point in points)
    assert len({point["k"] for point in points[1:]}) > 1


def trace(metric: list[float], status: str = "budget", target: float | None = 0.5) -> Trace:
    made = Trace(status=status, target=target)
    for index, value in enumerate(metric):
        made.append(index, 0.1 * index, value, {}, 0)
    return made


def test_sooner_beats_later_beats_closer_beats_broken() -> None:
    ranking = [
        trace([1.0, 0.4], "reached"),
        trace([1.0, 0.9, 0.4], "reached"),
        trace([1.0, 0.6]),
        trace([1.0, 0.8]),
        trace([1.0, 0.55], "diverged"),
    ]
    scores = [tuning.score(made, "steps") for made in ranking]
    assert scores == sorted(scores)
    assert len(set(scores)) == len(scores)


def test_without_a_target_the_lowest_value_wins() -> None:
    assert tuning.score(trace([1.0, 0.2], target=None), "steps") < tuning.score(trace([1.0, 0.3], target=None), "steps")


def test_the_first_rung_is_a_share_of_the_budget() -> None:
    assert tuning.first_rung(Budget(steps=100), 8) == Budget(steps=25)
    assert tuning.first_rung(Budget(seconds=2.0), 8) == Budget(seconds=0.5)
    assert tuning.first_rung(Budget(steps=3), 8) is None
    assert tuning.first_rung(Budget(steps=100), 3) is None


def test_options_may_be_of_any_type_and_make_no_noise() -> None:
    options = ((1e-6, 1.0), (1e-6, 1e-2))
    card = replace(CARD, search_space={"lr": hasten.LogReal(1e-3, 1e-1), "step_sizes": hasten.Choice(*options)})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        points = tuning.candidates(card, 8, {}, 0)
    assert {point["step_sizes"] for point in points[1:]} == set(options)
