"""Ready problems by name and parameters; literals as typed on the command line."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import hasten
from hasten.core import catalogue
from hasten.core.errors import InputError, UnknownNameError


def test_parameters_come_from_text_and_from_keywords() -> None:
    by_text = hasten.problem("quadratic:dim=7,cond=1e3")
    by_keyword = hasten.problem("quadratic", dim=7, cond=1e3)
    assert by_text.name == by_keyword.name == "quadratic:cond=1000.0,dim=7"
    assert by_text.params == {"dim": 7, "cond": 1e3}
    assert by_text.build(0).metric(by_text.build(0).x0) == by_keyword.build(0).metric(by_keyword.build(0).x0)  # type: ignore[attr-defined]


def test_whole_floats_are_integers_and_others_are_not() -> None:
    assert hasten.problem("quadratic:dim=1e1").params == {"dim": 10}
    with pytest.raises(InputError, match="dim must be of type int"):
        hasten.problem("quadratic:dim=1.5")


def test_an_unknown_problem_brings_the_nearest_names() -> None:
    with pytest.raises(UnknownNameError, match="Did you mean rosenbrock"):
        hasten.problem("rosenbrok")


@pytest.mark.parametrize(
    ("text", "value"),
    [("1e-3", 1e-3), ("3", 3), ("true", True), ("None", None), ("relu", "relu"), ("(0.9, 0.99)", (0.9, 0.99))],
)
def test_literals(text: str, value: Any) -> None:
    found = catalogue.literal(text)
    assert found == value
    assert type(found) is type(value)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_every_float_survives_typing(value: float) -> None:
    assert catalogue.literal(repr(value)) == value


@given(st.text(max_size=30))
def test_no_text_breaks_the_literal(text: str) -> None:
    catalogue.literal(text)
