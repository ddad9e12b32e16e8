"""Claims of Sinkhorn-Newton-Sparse (paper 118)."""

from __future__ import annotations

from hasten.core.catalogue import problem as ready
from hasten.core.claim import claim
from hasten.core.registry import get
from hasten.core.run import run
from hasten.core.trace import Trace

_METHOD = "solve.sinkhorn-newton-sparse"
_SCALE = "random 200 x 200 costs, uniform masses, eta = 500, marginal error 1e-9, density 15/n; Sinkhorn capped at 3000"


def _trace(method: str, seed: int, budget: int = 3000, eta: float = 500.0, **hyper: float) -> Trace:
    return run(get(method).make(**hyper), ready("random-transport", eta=eta), seed, budget=budget, target=1e-9)


@claim(
    method=_METHOD,
    paper_id=118,
    baseline="solve.sinkhorn",
    statement=f"Sinkhorn rounds plus Newton steps are at most 0.05 of Sinkhorn's rounds; {_SCALE}.",
    quantity="steps to 1e-9, ratio to Sinkhorn",
    threshold=0.05,
    aggregate="max",
)
def fewer_iterations(seed: int) -> float:
    return _trace(_METHOD, seed).cost_to() / _trace("solve.sinkhorn", seed).steps[-1]


@claim(
    method=_METHOD,
    paper_id=118,
    baseline="solve.sinkhorn",
    statement=f"It takes at most 0.15 of Sinkhorn's time; {_SCALE}.",
    quantity="seconds to 1e-9, ratio to Sinkhorn",
    threshold=0.15,
    note="Sinkhorn is stopped at 3000 rounds, mostly before it arrives, so the true ratio is lower still.",
)
def less_time(seed: int) -> float:
    return _trace(_METHOD, seed).cost_to(by="seconds") / _trace("solve.sinkhorn", seed).seconds[-1]


@claim(
    method=_METHOD,
    paper_id=118,
    baseline="solve.sinkhorn-newton-sparse",
    statement="Density matters: at eta = 1200 a Hessian of density 2/n does not arrive within 80 Newton steps.",
    quantity="Newton steps at density 2/n, capped at 80",
    relation=">=",
    threshold=80,
    aggregate="min",
)
def too_sparse_is_slow(seed: int) -> float:
    trace = _trace(_METHOD, seed, budget=100, eta=1200.0, density=2.0 / 200.0)
    return min(trace.cost_to() - 20, 80.0)
