"""Claims of the damped Newton methods with near-optimal global rate (paper 53)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import cast

import torch
from torch import Tensor

from hasten.core.catalogue import problem as ready
from hasten.core.claim import claim
from hasten.core.kinds.minimise import Minimisation
from hasten.core.problem import Problem
from hasten.core.registry import get
from hasten.core.run import run
from hasten.numerics.rates import observed_order
from hasten.solve.drive import solve

_METHOD = "solve.universal-newton"
_SCALE = "breast-cancer logistic regression (569 x 30) with mu = 1e-5, from 3*ones (seed 0) and 10*randn (seeds 1-5)"
_SEEDS = range(6)
_TARGET = 1e-10


def _logistic(seed: int) -> Problem:
    base = ready("breast-cancer-logreg", ridge=0.5e-5)

    def build(_: int) -> Minimisation:
        instance = cast(Minimisation, base.build(0))
        generator = torch.Generator().manual_seed(seed)
        x0 = torch.full_like(instance.x0, 3.0)
        instance.x0 = x0 if seed == 0 else 10.0 * torch.randn(x0.shape, generator=generator, dtype=x0.dtype)
        return instance

    return replace(base, build=build, every=1)


def _steps(method: str, seed: int, budget: int, **hyper: float) -> float:
    return run(get(method).make(**hyper), _logistic(seed), budget=budget, target=_TARGET).cost_to()


@cache
def _minimiser() -> Tensor:
    return solve(_logistic(0), _METHOD, tol=0.0, max_iter=60).x


@claim(
    method=_METHOD,
    paper_id=53,
    baseline="solve.newton",
    statement=f"Universal Newton reaches f - f* < 1e-10 from every start in at most 40 steps; {_SCALE}.",
    quantity="steps to 1e-10",
    threshold=40,
    seeds=_SEEDS,
    aggregate="max",
)
def steps_from_any_start(seed: int) -> float:
    return _steps(_METHOD, seed, 500)


@claim(
    method=_METHOD,
    paper_id=53,
    baseline="solve.newton",
    statement=f"The undamped Newton method does not arrive within 500 steps from any of the starts; {_SCALE}.",
    quantity="starts from which undamped Newton reaches 1e-10 in 500 steps, 1 or 0",
    threshold=0,
    seeds=_SEEDS,
    aggregate="max",
)
def undamped_newton_fails(seed: int) -> float:
    return float(math.isfinite(_steps("solve.newton", seed, 500)))


@claim(
    method=_METHOD,
    paper_id=53,
    baseline="solve.aicn",
    statement=f"The older 1/k^2 damping with L = 10 does not arrive within 2000 steps from any start; {_SCALE}.",
    quantity="starts from which AICN(L=10) reaches 1e-10 in 2000 steps, 1 or 0",
    threshold=0,
    seeds=_SEEDS,
    aggregate="max",
)
def small_constant_fails(seed: int) -> float:
    return float(math.isfinite(_steps("solve.aicn", seed, 2000, L=10.0)))


@claim(
    method=_METHOD,
    paper_id=53,
    baseline="solve.aicn",
    statement=f"The older damping with L = 1000, safe here, needs at least 3 times as many steps; {_SCALE}.",
    quantity="steps to 1e-10 of AICN(L=1000), ratio to universal Newton",
    relation=">=",
    threshold=3.0,
    seeds=_SEEDS,
    aggregate="min",
)
def fewer_steps_than_older_damping(seed: int) -> float:
    return _steps("solve.aicn", seed, 2000, L=1000.0) / _steps(_METHOD, seed, 500)


@claim(
    method=_METHOD,
    paper_id=53,
    baseline="solve.newton",
    statement=f"The local order of convergence is at least 1.5; {_SCALE}.",
    quantity="order from the last three distances to the minimiser above 1e-10",
    relation=">=",
    threshold=1.5,
    seeds=_SEEDS,
    aggregate="min",
    note="Distances below 1e-10 are left out: there the accuracy of the minimiser itself is reached.",
)
def local_order(seed: int) -> float:
    best, distances = _minimiser(), []
    solve(_logistic(seed), _METHOD, tol=0.0, max_iter=60, callback=lambda x: distances.append(float((x - best).norm())))
    return observed_order(distances, floor=1e-10)
