"""Rates read off sequences whose rate is known."""

from __future__ import annotations

import math

import pytest

from hasten.core.errors import InputError
from hasten.numerics.rates import linear_rate, loglog_slope, observed_order


@pytest.mark.parametrize("power", [-0.5, -1.0, -3.0])
def test_loglog_slope(power: float) -> None:
    steps = list(range(1001))
    errors = [1.0, *(2.0 * k**power for k in steps[1:])]
    assert loglog_slope(steps, errors, 10, 1000) == pytest.approx(power)


def test_loglog_slope_weighs_decades_alike() -> None:
    steps = list(range(1, 10001))
    errors = [k**-1.0 if k <= 100 else 100.0**-1 for k in steps]
    assert loglog_slope(steps, errors) == pytest.approx(-0.5, abs=0.1)


def test_linear_rate() -> None:
    assert linear_rate([3 * 0.7**k for k in range(20)]) == pytest.approx(0.7)


def test_observed_order() -> None:
    errors = [10.0 ** -(2.0**k) for k in range(5)]
    assert observed_order(errors, floor=1e-10) == pytest.approx(2.0)
    assert math.isnan(observed_order([1.0, 0.1]))
    assert math.isnan(observed_order([1.0, 1.0, 1.0]))


def test_too_few_points() -> None:
    with pytest.raises(InputError):
        loglog_slope([1], [1.0])
    with pytest.raises(InputError):
        linear_rate([1.0])
