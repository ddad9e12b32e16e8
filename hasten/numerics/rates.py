"""Rates of convergence read off a sequence of errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from hasten.core.errors import InputError


def loglog_slope(steps: Sequence[float], errors: Sequence[float], low: float = 1, high: float = math.inf) -> float:
    """Slope of log(error) against log(step) by least squares over the steps in [low, high]; -1 means error ~ 1/step.

    The points are weighted as if evenly spread over log(step), so that the many late steps do not drown the early ones.

    Raises:
        InputError: fewer than two distinct steps with a positive error in the range.
    """
    k, e = np.asarray(steps, float), np.asarray(errors, float)
    keep = (k >= low) & (k <= high) & (e > 0) & (k > 0)
    if len(np.unique(k[keep])) < 2:
        raise InputError(f"loglog_slope needs two steps with positive error in [{low}, {high}], got {int(keep.sum())}")
    x, y = np.log(k[keep]), np.log(e[keep])
    weight = np.gradient(x) if len(x) > 2 else np.ones(len(x))
    return float(np.polyfit(x, y, 1, w=np.sqrt(np.abs(weight)))[0])


def linear_rate(errors: Sequence[float]) -> float:
    """Factor per step of a geometrically falling sequence: least squares on log(error)."""
    e = np.asarray(errors, float)
    e = e[e > 0]
    if len(e) < 2:
        raise InputError(f"linear_rate needs two positive errors, got {len(e)}")
    return float(np.exp(np.polyfit(np.arange(len(e)), np.log(e), 1)[0]))


def observed_order(errors: Sequence[float], floor: float = 0.0) -> float:
    """Order of convergence from the last three errors above `floor`: `log(e2/e1) / log(e1/e0)`; nan with fewer."""
    above = [error for error in errors if error > floor]
    if len(above) < 3:
        return math.nan
    first, second, third = above[-3:]
    if second in (first, 0.0):
        return math.nan
    return math.log(third / second) / math.log(second / first)
