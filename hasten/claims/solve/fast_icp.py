"""Claims of fast and robust ICP (paper 6)."""

from __future__ import annotations

from typing import Any, cast

from hasten.core.catalogue import problem as ready
from hasten.core.claim import claim
from hasten.core.kinds.register import Registration
from hasten.core.problem import Problem
from hasten.solve.drive import SolveResult, solve

_METHOD = "solve.fast-icp"
_SURFACES = "two independent samples (4000 and 2000 points) of a bumpy closed surface, rotated by 0.4 rad"


def _solve(method: str, problem: Problem, seed: int, **hyper: Any) -> SolveResult:
    return solve(problem, method, tol=0.0, max_iter=1000, seed=seed, **hyper)


def _energy(problem: Problem, seed: int, result: SolveResult) -> float:
    _, distance = cast(Registration, problem.build(seed)).nearest(result.x)
    return float(distance.square().sum())


def _queries(problem: Problem, seed: int) -> float:
    fast, plain = (_solve(method, problem, seed).calls["query"] for method in (_METHOD, "solve.icp"))
    return fast / plain


@claim(
    method=_METHOD,
    paper_id=6,
    baseline="solve.icp",
    statement=f"Anderson acceleration needs at most 0.7 of plain ICP's nearest-neighbour queries; {_SURFACES}.",
    quantity="queries until the motion has settled, ratio to ICP",
    threshold=0.7,
    seeds=range(10),
    note="Rejected steps count two queries. With the same points in both sets plain ICP ends in about 20 steps and "
    "nothing can be gained.",
)
def fewer_queries(seed: int) -> float:
    return _queries(ready("bumpy-registration"), seed)


@claim(
    method=_METHOD,
    paper_id=6,
    baseline="solve.icp",
    statement=f"The energy reached with acceleration is within 5 % of plain ICP's, or lower; {_SURFACES}.",
    quantity="final sum of squared distances, ratio to ICP",
    threshold=1.05,
    seeds=range(10),
    aggregate="max",
)
def same_energy(seed: int) -> float:
    problem = ready("bumpy-registration")
    fast, plain = (_energy(problem, seed, _solve(method, problem, seed)) for method in (_METHOD, "solve.icp"))
    return fast / plain


@claim(
    method=_METHOD,
    paper_id=6,
    baseline="solve.fast-icp",
    statement="On 60 % of a bumpy cloud (the target's own points) with 10 % outliers, rotated by 0.4 rad, Welsch's "
    "loss has at most 0.1 of the error of least squares.",
    quantity="rigid RMSE with loss='welsch', ratio to loss='l2'",
    threshold=0.1,
    seeds=range(5),
    aggregate="max",
)
def robust_to_outliers_and_partial_overlap(seed: int) -> float:
    problem = ready("bumpy-registration", target=4000, keep=0.6, outliers=0.1, shared=True)
    robust, plain = (_solve(_METHOD, problem, seed, loss=loss).fun for loss in ("welsch", "l2"))
    return robust / plain


@claim(
    method=_METHOD,
    paper_id=6,
    baseline="solve.icp",
    statement="On two disjoint samples of 3000 points of the Stanford bunny, rotated by 0.4 rad, acceleration needs at "
    "most 0.7 of plain ICP's queries.",
    quantity="queries until the motion has settled, ratio to ICP",
    threshold=0.7,
    seeds=range(10),
    note="The threshold is that of the bumpy surface; the bunny's features let plain ICP settle in half the steps.",
)
def fewer_queries_on_the_bunny(seed: int) -> float:
    return _queries(ready("bunny"), seed)
