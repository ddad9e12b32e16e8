"""Claims of EF21-W (paper 449)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache
from typing import Any

import torch

from hasten.core.catalogue import problem
from hasten.core.claim import claim
from hasten.core.problem import Problem
from hasten.core.run import run
from hasten.distributed import EF21, TopK
from hasten.problems.a9a_federated import FederatedLogistic
from hasten.problems.hetero_quadratic import HeteroQuadratic

_METHOD = "distributed.ef21"
_SCALE = "50 quadratics of dimension 20, one of them scaled by 100 (L_QM/L_AM = 4.76), top-1, theory's step sizes"


def _steep(seed: int) -> HeteroQuadratic:
    return problem("hetero-quadratic", n=50, dim=20, L_spread=100.0).build(seed)  # type: ignore[return-value]


def _by_gradient(seed: int) -> Problem:
    """The problem with the metric |grad f(x)|^2 / |grad f(0)|^2."""

    def build(_: int) -> HeteroQuadratic:
        instance = _steep(seed)
        mean, pull = instance.A.mean(0), instance.b.mean(0)
        instance._metric = lambda x: float((mean @ x - pull).square().sum() / pull.square().sum())
        return instance

    base = problem("hetero-quadratic", n=50, dim=20, L_spread=100.0)
    return replace(base, build=build, every=1)


@cache
def _rounds(seed: int, weights: str | None, lr: str | None) -> float:
    instance = _steep(seed)
    method = EF21(TopK(1), lr=lr, weights=weights, L=instance.L, L_i=instance.L_i)
    trace = run(method, _by_gradient(seed), seed, budget=20000, target=1e-4)
    return trace.cost_to()


@claim(
    method=_METHOD,
    paper_id=449,
    baseline="distributed.ef21",
    statement=f"EF21-W needs at most 0.35x the rounds of EF21 to a squared gradient norm of 1e-4 relative; {_SCALE}.",
    quantity="rounds, ratio to EF21 with the quadratic mean",
    threshold=0.35,
)
def fewer_rounds(seed: int) -> float:
    return _rounds(seed, "smoothness", None) / _rounds(seed, None, None)


@claim(
    method=_METHOD,
    paper_id=449,
    baseline="distributed.ef21",
    statement=f"Unweighted EF21 with the arithmetic mean in its step stays within 1.3x of EF21-W; {_SCALE}.",
    quantity="rounds, ratio to EF21-W (inf if it diverges)",
    threshold=1.3,
    aggregate="max",
)
def arithmetic_step_without_weights(seed: int) -> float:
    return _rounds(seed, None, "am") / _rounds(seed, "smoothness", None)


@claim(
    method=_METHOD,
    paper_id=449,
    baseline="distributed.dp-sgd",
    statement=f"EF21-W converges to the solution: relative distance 1e-4 within 20000 rounds; {_SCALE}.",
    quantity="smallest relative distance",
    threshold=1e-4,
    aggregate="max",
)
def right_solution(seed: int) -> float:
    instance = _steep(seed)
    method = EF21(TopK(1), weights="smoothness", L=instance.L, L_i=instance.L_i)
    base = problem("hetero-quadratic", n=50, dim=20, L_spread=100.0)
    return run(method, base, seed, budget=20000, target=1e-4, every=50).best


@claim(
    method=_METHOD,
    paper_id=449,
    baseline="distributed.ef21",
    statement="Logistic regression on a9a over 20 clients sorted by feature norm, top-10 %, theory's step sizes: the "
    "ratio of rounds of EF21-W to EF21 is at most 1.3 L_AM/L_QM.",
    quantity="rounds to a squared gradient norm of 1e-4 relative, ratio to EF21, divided by L_AM/L_QM",
    threshold=1.3,
    seeds=(0,),
    note="The rows of a9a have nearly equal norms, so that L_AM/L_QM is 0.999 and there is next to nothing to gain.",
)
def logistic_regression(seed: int) -> float:
    instance: Any = problem("a9a-federated").build(seed)
    assert isinstance(instance, FederatedLogistic)
    L, L_i = instance.L, instance.L_i

    def rounds(weights: str | None) -> float:
        method = EF21(TopK(0.1), weights=weights, L=L, L_i=L_i)
        return run(method, problem("a9a-federated"), seed, budget=6000).cost_to()

    spread = float(L_i.mean()) / math.sqrt(float(torch.mean(L_i**2)))
    return rounds("smoothness") / rounds(None) / spread
