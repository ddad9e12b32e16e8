"""Forecasts from finite differences: what they know exactly, how they begin, that they keep their inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hasten.numerics.taylor import forecast, refreshed


def history(values: list[float], gaps: list[int], order: int) -> list[Tensor]:
    factors: list[Tensor] = []
    for value, gap in zip(values, gaps):
        factors = refreshed(factors, torch.tensor(value, dtype=torch.float64), gap, order)
    return factors


def test_order_grows_by_one_per_value() -> None:
    assert [len(history([1.0] * n, [1] * n, 2)) for n in range(1, 6)] == [1, 2, 3, 3, 3]


def test_lines_are_forecast_exactly_at_unequal_gaps() -> None:
    factors = history([3.0, 5.0, 11.0], [0, 1, 3], 1)
    assert float(forecast(factors, 4)) == pytest.approx(19.0, abs=1e-12)
    assert float(forecast(factors[:1], 4)) == 11.0


def test_squares_are_off_by_half_a_gap_of_curvature() -> None:
    """`F_1` of k^2 at 6 with gap 3 is 9 instead of 12, `F_2` is 2."""
    factors = history([0.0, 9.0, 36.0], [0, 3, 3], 2)
    assert [float(factor) for factor in factors] == pytest.approx([36.0, 9.0, 2.0])
    assert float(forecast(factors, 2)) == pytest.approx(36 + 18 + 4)


def test_inputs_are_left_alone() -> None:
    value = torch.ones(3)
    factors = refreshed([], value, 1, 2)
    forecast(factors, 1).zero_()
    assert bool((factors[0] == 1).all())
    older = list(factors)
    refreshed(factors, 2 * value, 1, 2)
    assert factors == older
