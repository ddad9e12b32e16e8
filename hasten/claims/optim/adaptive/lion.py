"""Claims of Lion-K (Chen, Liu, Liang, Liu 2023): weight decay is a constraint, and it is reached exponentially fast."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.core.claim import claim
from hasten.optim.adaptive.lion import LionK

DECAY = 0.5
CENTRE = torch.tensor([5.0, -3.0, 1.0, 0.5], dtype=torch.float64)


def _end(kappa: str) -> Tensor:
    """Last iterate on `|x - centre|^2 / 2`, lr 1e-3 lowered linearly to 0 in 20,000 steps, from 0."""
    x = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = LionK([x], lr=1e-3, weight_decay=DECAY, kappa=kappa)
    for step in range(20_000):
        optimizer.param_groups[0]["lr"] = 1e-3 * (1 - step / 20_000)
        x.grad = x.detach() - CENTRE
        optimizer.step()
    return x.detach()


@claim(
    method="optim.lion",
    paper_id=357,
    baseline="the solution on the box, (2, -2, 1, 0.5)",
    statement="With weight decay 0.5, Lion solves a least-squares problem on the box max|x| <= 2.",
    quantity="largest distance from the solution",
    threshold=0.02,
    seeds=(0,),
)
def ends_at_the_constrained_solution(seed: int) -> float:
    """Four variables, no randomness."""
    return float((_end("l1") - CENTRE.clamp(-1 / DECAY, 1 / DECAY)).abs().max())


@claim(
    method="optim.lion",
    paper_id=357,
    baseline="the rate (1 - lr weight_decay)^t",
    statement="From max|x| = 100 the distance to the box falls by (1 - lr weight_decay) per step, within 1 %.",
    quantity="largest relative deviation from the rate",
    threshold=0.01,
    seeds=(0,),
    note="At lr 1e-3 over 2000 steps; the violation is |weight_decay x| - 1.",
)
def constraint_is_reached_exponentially(seed: int) -> float:
    """The gradient never changes and pulls outwards, so that nothing but the decay brings the iterate in."""
    lr = 1e-3
    x = torch.nn.Parameter(torch.full((4,), 100.0, dtype=torch.float64))
    optimizer = LionK([x], lr=lr, weight_decay=DECAY)
    start, worst = DECAY * 100.0 - 1.0, 0.0
    for t in range(1, 2001):
        x.grad = -CENTRE.abs()
        optimizer.step()
        violation = DECAY * float(x.detach().abs().max()) - 1.0
        worst = max(worst, abs(violation / (start * (1 - lr * DECAY) ** t) - 1.0))
    return worst


@claim(
    method="optim.lion-k",
    paper_id=357,
    baseline="the solution on the ball, 2 x* / |x*|",
    statement="With the l2 potential and weight decay 0.5 it solves the same problem on the ball of radius 2.",
    quantity="largest distance from the solution",
    threshold=0.02,
    seeds=(0,),
)
def ends_on_the_ball(seed: int) -> float:
    """Four variables, no randomness."""
    radius = 1 / DECAY
    return float((_end("l2") - CENTRE * (radius / math.sqrt(float(CENTRE.square().sum())))).abs().max())
