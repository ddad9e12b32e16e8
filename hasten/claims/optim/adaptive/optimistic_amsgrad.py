"""Claims of Optimistic AMSGrad (Wang et al. 2019): a game in which AMSGrad circles, and a quadratic."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.optim import Optimizer

import hasten
from hasten.claims.optim.digits import ratio
from hasten.core.claim import claim
from hasten.core.kinds.minimise import Minimisation
from hasten.optim.adaptive.amsgrad import AMSGrad
from hasten.optim.adaptive.optimistic_amsgrad import OptimisticAMSGrad

METHOD = "optim.optimistic-amsgrad"
BASELINE = "AMSGrad without bias correction"
GRID = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
PLAIN = partial(AMSGrad, bias_correction=False)


def _game(make: Callable[..., Optimizer]) -> float:
    """Distance from the solution of `min_x max_y x y` after 4000 simultaneous steps from (1, 1)."""
    x, y = (nn.Parameter(torch.ones(1, dtype=torch.float64)) for _ in range(2))
    optimizer = make([x, y], lr=0.05, betas=(0.0, 0.999), eps=1e-3)
    for _ in range(4000):
        x.grad, y.grad = y.detach().clone(), -x.detach().clone()
        optimizer.step()
    return math.hypot(x.item(), y.item())


def _steps(make: Callable[..., Optimizer], seed: int, lr: float, budget: int = 300) -> float:
    """Steps to 1e-4 of the first gap on a rotated quadratic of condition 100 in 30 variables."""
    instance = hasten.problem("quadratic", dim=30, cond=100.0, rotated=True).build(seed)
    assert isinstance(instance, Minimisation)
    x = nn.Parameter(instance.x0.clone())
    optimizer, target = make([x], lr=lr), 1e-4 * instance.metric(x.detach())
    for t in range(1, budget + 1):
        x.grad = instance.gradient(x.detach())
        optimizer.step()
        if instance.metric(x.detach()) <= target:
            return t
    return math.inf


@claim(
    method=METHOD,
    paper_id=240,
    baseline=BASELINE,
    statement="In the bilinear game, predicting the last gradient leads to the solution.",
    quantity="distance from the solution after 4000 steps of lr 0.05, 1.41 at first",
    threshold=1e-6,
    seeds=(0,),
    note="Without momentum, eps 1e-3.",
)
def finds_the_solution_of_a_game(seed: int) -> float:
    """The game has no randomness."""
    return _game(partial(OptimisticAMSGrad, predictor="last"))


@claim(
    method=METHOD,
    paper_id=240,
    baseline=BASELINE,
    statement="In the same game AMSGrad stays away from the solution.",
    quantity="AMSGrad's distance from the solution",
    relation=">=",
    threshold=1.0,
    seeds=(0,),
    note="Without momentum, eps 1e-3.",
)
def where_amsgrad_circles(seed: int) -> float:
    """The game has no randomness."""
    return _game(PLAIN)


@claim(
    method=METHOD,
    paper_id=240,
    baseline=BASELINE,
    statement="At the best of five learning rates each, it needs 0.85 times AMSGrad's steps on a rotated quadratic.",
    quantity="steps to 1e-4 of the first gap, ratio to AMSGrad",
    threshold=0.85,
    note="Exact gradients, condition 100 in 30 variables. The paper's claim is of image and text classification.",
)
def steps_at_best_rate(seed: int) -> float:
    """Learning rates 1e-3, 3e-3, 1e-2, 3e-2, 1e-1; history of 5 gradients."""
    ours, theirs = (min(_steps(make, seed, lr) for lr in GRID) for make in (OptimisticAMSGrad, PLAIN))
    return ratio(ours, theirs)
