"""Claims of the generalised Polyak step size (Wang, Johansson, Zhang 2023) on an ill-conditioned quadratic."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

from hasten.core.catalogue import problem
from hasten.core.claim import claim
from hasten.optim.step_size.alr import ALRHB, ALRMAG

LARGEST = 1e3
MOMENTA = (0.5, 0.9, 0.95, 0.99)
RULES: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "mag": ALRMAG,
    "hb": ALRHB,
    "hb2": lambda params, momentum: ALRHB(params, momentum, factor=2),
    "heavy-ball": lambda params, momentum: torch.optim.SGD(params, lr=1 / LARGEST, momentum=momentum),
}


@cache
def steps(rule: str, momentum: float, seed: int, limit: int = 6000) -> float:
    """Steps to 1e-8 of the first gap on a quadratic in 50 variables, condition number 1000."""
    instance: Any = problem("quadratic", dim=50, cond=LARGEST).build(seed)
    x = torch.nn.Parameter(instance.x0.clone())
    optimizer = RULES[rule]([x], momentum=momentum)
    target = 1e-8 * float(instance.fun(instance.x0))
    for t in range(limit + 1):
        value = instance.fun(x.detach())
        if float(value) <= target:
            return t
        x.grad = instance.gradient(x.detach())
        optimizer.step(**({} if rule == "heavy-ball" else {"loss": value}))
    return math.inf


@claim(
    method="optim.alr-hb",
    paper_id=325,
    baseline="heavy ball with step size 1/L",
    statement="On a quadratic of condition number 1000, ALR-HB takes at most 0.6 times the steps of heavy ball.",
    quantity="steps to 1e-8 of the first gap, ratio to heavy ball with the same momentum",
    threshold=0.6,
)
def against_heavy_ball(seed: int) -> float:
    """50 variables, momentum 0.9."""
    return steps("hb", 0.9, seed) / steps("heavy-ball", 0.9, seed)


@claim(
    method="optim.alr-hb",
    paper_id=325,
    baseline="gradient descent with step size 1/L",
    statement="On a quadratic of condition number 1000, ALR-HB takes at most 0.08 times the steps of gradient descent.",
    quantity="steps to 1e-8 of the first gap, ratio to gradient descent",
    threshold=0.08,
)
def against_gradient_descent(seed: int) -> float:
    """50 variables, momentum 0.9."""
    return steps("hb", 0.9, seed) / steps("heavy-ball", 0.0, seed)


@claim(
    method="optim.alr-hb",
    paper_id=325,
    baseline="none: the momentum is varied",
    statement="ALR-HB, in both its forms, and ALR-MAG converge within 2500 steps at every momentum from 0.5 to 0.99.",
    quantity="most steps to 1e-8 of the first gap over three rules and four momenta",
    threshold=2500.0,
)
def insensitive_to_momentum(seed: int) -> float:
    """Quadratic in 50 variables, condition number 1000; momentum 0.5, 0.9, 0.95, 0.99."""
    return max(steps(rule, momentum, seed) for rule in ("mag", "hb", "hb2") for momentum in MOMENTA)
