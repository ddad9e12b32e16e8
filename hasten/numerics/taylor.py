"""Forecasts of a quantity along steps from finite differences of its past values."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor


def refreshed(factors: Sequence[Tensor], value: Tensor, gap: int, order: int) -> list[Tensor]:
    """Factors after a new value: `F_0' = value`, `F_{i+1}' = (F_i' - F_i)/gap` for every `F_i` there is, up to `order`.

    `F_i` estimates the i-th derivative by the step index; the number of factors grows by one per value. Values that are
    unequally spaced are not corrected for.

    Args:
        factors: those of the value before, empty at the first one.
        value: the present value.
        gap: steps since the value before.
        order: highest difference to keep.
    """
    fresh = [value]
    for old in factors[:order]:
        fresh.append((fresh[-1] - old) / gap)
    return fresh


def forecast(factors: Sequence[Tensor], ahead: int) -> Tensor:
    """`sum_i F_i ahead^i/i!`, the value `ahead` steps after the latest one; a new tensor."""
    total = factors[0].clone()
    weight = 1.0
    for i, factor in enumerate(factors[1:], start=1):
        weight *= ahead / i
        total.add_(factor, alpha=weight)
    return total
