"""Tuning: the same number of trials for every method, quasi-random, the hopeless ones stopped early."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from hasten.core.card import Card, Choice, Integer, Range, Real
from hasten.core.run import Budget
from hasten.core.trace import Trace

SEED_OFFSET = 1_000_003
"""Tuning seeds start here, far from any scored seed."""
KEEP = 3
"""One trial in `KEEP` survives the first rung."""
SHARE = 4
"""The first rung gets 1 / `SHARE` of the budget."""
FEWEST = 4
"""Below this many trials nothing is stopped early."""


def candidates(card: Card, trials: int, fixed: Mapping[str, Any], seed: int) -> list[dict[str, Any]]:
    """Hyper-parameters to try: the method's defaults, then quasi-random points of its search space.

    They depend on the card and the seed only, never on what other trials gave, so that trials can run in any order.
    `fixed` hyper-parameters stay as the user set them.
    """
    space = {name: span for name, span in card.search_space.items() if name not in fixed}
    first = dict(fixed)
    if not space or trials <= 1:
        return [first]
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {name: _distribution(span) for name, span in space.items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.QMCSampler(
            qmc_type="sobol", scramble=True, seed=seed, warn_independent_sampling=False
        )
        study = optuna.create_study(sampler=sampler)
        # The sampler learns its search space from the first finished trial; that place goes to the defaults.
        middle = {name: _middle(span) for name, span in space.items()}
        study.add_trial(optuna.trial.create_trial(params=middle, distributions=distributions, value=0.0))
        points = [dict(study.ask(distributions).params) for _ in range(trials - 1)]
    return [first, *({**fixed, **{name: _value(space[name], x) for name, x in point.items()}} for point in points)]


def _distribution(span: Range) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(span, Choice):
        # By place: options may be of any type.
        return CategoricalDistribution(tuple(range(len(span.options))))
    if isinstance(span, Integer):
        return IntDistribution(span.low, span.high, log=span.log)
    return FloatDistribution(span.low, span.high, log=span.log)


def _middle(span: Range) -> Any:
    if isinstance(span, Choice):
        return 0
    if isinstance(span, Real):
        return math.sqrt(span.low * span.high) if span.log else 0.5 * (span.low + span.high)
    return span.low


def _value(span: Range, x: Any) -> Any:
    if isinstance(span, Choice):
        return span.options[x]
    return float(f"{x:.3g}") if isinstance(x, float) else x


def first_rung(budget: Budget, trials: int) -> Budget | None:
    """The short budget of the first rung, or None where stopping early would not pay."""
    if trials < FEWEST:
        return None
    shares = {
        "steps": None if budget.steps is None else budget.steps // SHARE,
        "seconds": None if budget.seconds is None else budget.seconds / SHARE,
        "calls": None if budget.calls is None else budget.calls // SHARE,
    }
    if any(share is not None and share < 1 for name, share in shares.items() if name != "seconds"):
        return None
    return replace(budget, **shares)


def survivors(trials: int) -> int:
    """How many trials go on after the first rung."""
    return max(2, math.ceil(trials / KEEP))


def score(trace: Trace, cost: str) -> tuple[int, float]:
    """Sort key of a trial, smaller is better: arrived (how soon), not arrived (how close), broken."""
    if trace.status in ("diverged", "error", "hung"):
        return 2, trace.best
    arrival = trace.cost_to(by=cost)
    return (0, arrival) if math.isfinite(arrival) else (1, trace.best)
