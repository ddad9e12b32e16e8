"""Argument checks at the door: each error names the argument, its value and the allowed range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hasten.core.errors import InputError


def real(
    name: str,
    value: Any,
    low: float = -math.inf,
    high: float = math.inf,
    *,
    open_low: bool = False,
    open_high: bool = False,
) -> Any:
    """Return `value` if it is a real number inside the interval, else raise `InputError`.

    0-dim tensors pass as they are: a learning rate may be one.
    """
    left, right = "(" if open_low or low == -math.inf else "[", ")" if open_high or high == math.inf else "]"
    allowed = f"a real number in {left}{low:g}, {high:g}{right}"
    try:
        number = float(value)
    except (TypeError, ValueError, RuntimeError):
        raise InputError(f"{name} must be {allowed}, got {value!r}") from None
    below = number <= low if open_low else number < low
    above = number >= high if open_high else number > high
    if isinstance(value, (bool, str)) or math.isnan(number) or math.isinf(number) or below or above:
        raise InputError(f"{name} must be {allowed}, got {value!r}")
    return value


def positive(name: str, value: Any) -> Any:
    """`value` if it is a finite number above zero."""
    return real(name, value, 0.0, open_low=True)


def nonnegative(name: str, value: Any) -> Any:
    """`value` if it is a finite number of at least zero."""
    return real(name, value, 0.0)


def fraction(name: str, value: Any) -> Any:
    """`value` if it lies in [0, 1)."""
    return real(name, value, 0.0, 1.0, open_high=True)


def integer(name: str, value: Any, low: int | None = None, high: int | None = None) -> int:
    """`value` if it is an integer inside the (closed) interval."""
    bad = isinstance(value, bool) or not hasattr(value, "__index__")
    if not bad:
        value = value.__index__()
        bad = (low is not None and value < low) or (high is not None and value > high)
    if bad:
        bounds = f" of at least {low}" if high is None and low is not None else ""
        bounds = f" from {low} to {high}" if high is not None else bounds
        raise InputError(f"{name} must be an integer{bounds}, got {value!r}")
    return value


def one_of(name: str, value: Any, allowed: Sequence[Any]) -> Any:
    """`value` if it is among `allowed`."""
    if value not in allowed:
        raise InputError(f"{name} must be one of {', '.join(map(repr, allowed))}; got {value!r}")
    return value
