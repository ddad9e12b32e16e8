"""Claims of AdEMAMix (Pagliardini, Ablin, Grangier 2024): digits, and the long memory on Rosenbrock's valley."""

from __future__ import annotations

from typing import Any

import hasten
from hasten.claims.optim.digits import ADAM, best_steps, ratio, steps
from hasten.core.claim import claim
from hasten.core.trace import Trace

METHOD = "optim.ademamix"
SHORT: dict[str, Any] = {"betas": (0.9, 0.999, 0.99), "alpha": 2.0}
LONG: dict[str, Any] = {
    "betas": (0.9, 0.999, 0.999),
    "alpha": 5.0,
    "alpha_warmup": 5000,
    "beta3_warmup": 5000,
}
SCALE = "The slow average's decay is shortened to the length of the run. The paper's claim is of 1.3B-parameter models."


@claim(
    method=METHOD,
    paper_id=255,
    baseline=ADAM,
    statement="At lr 3e-3, AdEMAMix with b3 = 0.99 needs 0.8 times Adam's steps on digits.",
    quantity="steps to loss 0.1 at lr 3e-3, ratio to Adam",
    threshold=0.8,
    note=SCALE,
)
def steps_at_equal_rate(seed: int) -> float:
    """Digits MLP, alpha 2."""
    return ratio(steps(METHOD, seed, lr=3e-3, **SHORT), steps(ADAM, seed, lr=3e-3))


@claim(
    method=METHOD,
    paper_id=255,
    baseline=ADAM,
    statement="At the best of four learning rates each, it needs no more steps than Adam on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=1.0,
    note="A tie within the resolution of five steps. " + SCALE,
)
def steps_at_best_rate(seed: int) -> float:
    """Digits MLP, learning rates 1e-3, 3e-3, 1e-2, 3e-2."""
    return ratio(best_steps(METHOD, seed, **SHORT), best_steps(ADAM, seed))


def _valley(method: str, lr: float, **hyper: Any) -> Trace:
    """Two-dimensional Rosenbrock function from (-1.2, 1), 5000 steps or a loss of 1e-6."""
    made = hasten.get(method).make(lr=lr, **hyper)
    return hasten.run(made, hasten.problem("rosenbrock"), budget=5000, target=1e-6)


@claim(
    method=METHOD,
    paper_id=255,
    baseline=ADAM,
    statement="On Rosenbrock's valley at lr 1e-3, the loss after 5000 steps is a tenth of Adam's.",
    quantity="loss after 5000 steps at lr 1e-3, ratio to Adam",
    threshold=0.1,
    seeds=(0,),
)
def long_memory_at_small_rate(seed: int) -> float:
    """The problem has no randomness."""
    return _valley(METHOD, 1e-3, **LONG).final / _valley(ADAM, 1e-3).final


@claim(
    method=METHOD,
    paper_id=255,
    baseline=ADAM,
    statement="On Rosenbrock's valley at lr 1e-2, it reaches a loss of 1e-6 in half of Adam's steps.",
    quantity="steps to loss 1e-6 at lr 1e-2, ratio to Adam",
    threshold=0.5,
    seeds=(0,),
)
def long_memory_at_large_rate(seed: int) -> float:
    """The problem has no randomness."""
    return ratio(_valley(METHOD, 1e-2, **LONG).cost_to(), _valley(ADAM, 1e-2).cost_to())
