"""How sure a comparison is: bootstrap intervals of cost ratios, and performance profiles over several problems."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hasten.core import check
from hasten.core.errors import InputError

LEVEL = 0.9
_EXACT_UP_TO = 6
_RESAMPLES = 10_000

Floats = NDArray[np.float64]
_Statistic = Callable[[Floats, Floats], Floats]


@dataclass(frozen=True)
class Comparison:
    """A method against the baseline on paired seeds: the estimate and its interval.

    Attributes:
        value: ratio (or difference) of the medians; inf where the method's median run never arrived, 0 where only the
            baseline's never did, nan where neither did or no seed is common to both.
        low, high: ends of the interval; nan with fewer than two seeds.
        seeds: how many paired seeds it rests on.
        neutral: the value that means "no difference": 1 for a ratio, 0 for a difference.
        level: the interval's nominal coverage.
    """

    value: float
    low: float
    high: float
    seeds: int
    neutral: float = 1.0
    level: float = LEVEL

    @property
    def decided(self) -> bool:
        """Whether the interval excludes "no difference"."""
        return self.high < self.neutral or self.low > self.neutral


def bootstrap_ratio(costs: Sequence[float], baseline: Sequence[float], *, level: float = LEVEL) -> Comparison:
    """Ratio of the median costs on paired seeds, `median(costs) / median(baseline)`; below 1 is cheaper.

    Entry i of both belongs to the same seed; seeds are resampled in pairs, so what they share cancels. A run that never
    arrived costs inf. Percentile interval; up to six seeds it is exact (all resamples), beyond that it uses a fixed
    random seed, so equal input gives equal output. A resample in which neither median arrived says nothing about the
    ratio and widens the interval on both sides.

    With three or four seeds the interval is at most the range of what was seen and covers less than its level (about
    75 % and 87 % instead of 90 %); from five seeds on it covers at least its level.

    Args:
        costs, baseline: costs >= 0, inf allowed, one per seed, of equal length.
        level: coverage of the interval, in (0, 1).

    Raises:
        InputError: lengths differ, a cost is negative or nan.
    """
    ours, theirs = _paired(costs, baseline)
    if (ours < 0).any() or (theirs < 0).any():
        raise InputError("costs must be >= 0; compare quantities that change sign with bootstrap_difference")
    return _bootstrap(ours, theirs, _ratio, 1.0, level)


def bootstrap_difference(values: Sequence[float], baseline: Sequence[float], *, level: float = LEVEL) -> Comparison:
    """Difference of the medians on paired seeds, `median(values) - median(baseline)`; see `bootstrap_ratio`."""
    ours, theirs = _paired(values, baseline)
    return _bootstrap(ours, theirs, _difference, 0.0, level)


def performance_profile(costs: Floats | Sequence[Sequence[float]]) -> tuple[Floats, Floats]:
    """Dolan-More profile: for each factor tau, the share of problems that a method solves within tau times the best.

    Args:
        costs: problems x methods, >= 0, inf where a method did not arrive.

    Returns:
        `(tau, share)`: the factors at which a share changes, increasing from 1, and the shares there,
        factors x methods. A problem that nobody solved counts as unsolved for all.
    """
    table = np.asarray(costs, dtype=float)
    if table.ndim != 2 or not table.size:
        raise InputError(f"costs must be a table, problems x methods, not empty; got shape {table.shape}")
    if np.isnan(table).any() or (table < 0).any():
        raise InputError("costs must be >= 0 and not nan; use inf where a method did not arrive")
    factors = _ratio(table, table.min(axis=1, keepdims=True))
    factors = np.where(np.isnan(factors), math.inf, factors)
    tau = np.unique(np.append(factors[np.isfinite(factors)], 1.0))
    share = (factors[None] <= tau[:, None, None]).mean(axis=1)
    return tau, share


def median(values: Floats | Sequence[float]) -> Floats:
    """Median along the last axis; between two middle values of which one is inf it is inf, never nan."""
    ordered = np.sort(np.asarray(values, dtype=float), axis=-1)
    count = ordered.shape[-1]
    low, high = ordered[..., (count - 1) // 2], ordered[..., count // 2]
    with np.errstate(invalid="ignore"):
        return np.where(low == high, low, low + (high - low) / 2)


def _paired(ours: Sequence[float], theirs: Sequence[float]) -> tuple[Floats, Floats]:
    a, b = np.asarray(ours, dtype=float), np.asarray(theirs, dtype=float)
    if a.shape != b.shape or a.ndim != 1:
        raise InputError(f"both sides need one value per seed, got shapes {a.shape} and {b.shape}")
    if np.isnan(a).any() or np.isnan(b).any():
        raise InputError("values must not be nan; use inf for a run that did not arrive")
    return a, b


def _ratio(ours: Floats, theirs: Floats) -> Floats:
    """`ours / theirs` where 0/0 is 1 and inf/inf stays nan."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where((ours == 0) & (theirs == 0), 1.0, ours / theirs)


def _difference(ours: Floats, theirs: Floats) -> Floats:
    with np.errstate(invalid="ignore"):
        return ours - theirs


def _bootstrap(ours: Floats, theirs: Floats, compare, neutral: float, level: float) -> Comparison:
    check.real("level", level, 0.0, 1.0, open_low=True, open_high=True)
    count = len(ours)
    if count == 0:
        return Comparison(math.nan, math.nan, math.nan, 0, neutral, level)
    value = float(compare(median(ours), median(theirs)))
    if count == 1:
        return Comparison(value, math.nan, math.nan, 1, neutral, level)
    index = _resamples(count)
    drawn = compare(median(ours[index]), median(theirs[index]))
    silent = np.isnan(drawn)
    tail = (1 - level) / 2
    low = float(np.quantile(np.where(silent, -math.inf, drawn), tail, method="inverted_cdf"))
    high = float(np.quantile(np.where(silent, math.inf, drawn), 1 - tail, method="inverted_cdf"))
    return Comparison(value, max(low, 0.0) if neutral == 1.0 else low, high, count, neutral, level)


def _resamples(count: int) -> NDArray[np.int64]:
    """Rows of seed indices: every possible resample of few seeds, a fixed random set of many."""
    if count <= _EXACT_UP_TO:
        return np.indices((count,) * count).reshape(count, -1).T
    return np.random.default_rng(0).integers(count, size=(_RESAMPLES, count))
