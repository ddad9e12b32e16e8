"""Claims of the budget-aware schedule (Tang et al. 2025): worth of the shape, and whether it carries over."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR

import hasten
from hasten.core.claim import claim
from hasten.core.kinds.train import Training
from hasten.optim.schedules.uba import UBASchedule

SHORT, LONG = 100, 400
PHIS = ("0.5", "1", "2", "5")
CLASSICS: dict[str, Callable[[Optimizer, int], Any]] = {
    "step": lambda optimizer, steps: MultiStepLR(optimizer, [steps // 2, 3 * steps // 4]),
    "cosine": lambda optimizer, steps: CosineAnnealingLR(optimizer, steps),
    "linear": lambda optimizer, steps: LinearLR(optimizer, 1.0, 0.0, steps),
}
RATES = {"digits": (0.06, 0.12, 0.25, 0.4), "quadratic": (0.005, 0.0075, 0.01, 0.0125, 0.015, 0.0175, 0.0195)}
PAPER_SCALE = "The paper: ResNets on CIFAR and ImageNet, language models of 36M to 1B, budgets of 25, 50 and 100%."


def schedule(name: str, optimizer: Optimizer, steps: int) -> Any:
    """A classical schedule by name, or the budget-aware one by its shape."""
    made = CLASSICS.get(name)
    return made(optimizer, steps) if made else UBASchedule(optimizer, steps, phi=float(name))


def digits_loss(name: str, steps: int, lr: float, seed: int) -> float:
    """Full-data loss of the digits MLP after SGD with momentum 0.9, mean over three runs."""
    return sum(_digits_loss(name, steps, lr, 3 * seed + run) for run in range(3)) / 3


def _digits_loss(name: str, steps: int, lr: float, seed: int) -> float:
    instance = hasten.problem("digits-mlp").build(seed)
    assert isinstance(instance, Training)
    optimizer = torch.optim.SGD(instance.parameters, lr=lr, momentum=0.9)
    course = schedule(name, optimizer, steps)
    for _ in range(steps):
        instance.gradient()
        optimizer.step()
        course.step()
    return instance.metric(instance.model)


def quadratic_loss(name: str, steps: int, lr: float, seed: int) -> float:
    """Mean value over 64 runs of SGD; 50 variables, curvatures 1 to 100, noise 1 on every entry of the gradient."""
    generator = torch.Generator().manual_seed(seed)
    curvature = torch.logspace(0, 2, 50, dtype=torch.float64)
    x = torch.nn.Parameter(torch.randn(64, 50, generator=generator, dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=lr)
    course = schedule(name, optimizer, steps)
    for _ in range(steps):
        x.grad = curvature * x.detach() + torch.randn(64, 50, generator=generator, dtype=torch.float64)
        optimizer.step()
        course.step()
    return float((curvature * x.detach() ** 2).sum(1).mean() / 2)


LOSSES = {"digits": digits_loss, "quadratic": quadratic_loss}


@cache
def best(problem: str, name: str, steps: int, seed: int) -> float:
    """Final loss at the best learning rate of the grid."""
    return min(LOSSES[problem](name, steps, lr, seed) for lr in RATES[problem])


def gain(problem: str, seed: int) -> float:
    """Best shape other than cosine over cosine, at the short budget."""
    return min(best(problem, phi, SHORT, seed) for phi in PHIS if phi != "2") / best(problem, "cosine", SHORT, seed)


def carried_over(problem: str, seed: int) -> float:
    """The shape that was best at the short budget, over the best classical schedule, at the long one."""
    phi = min(PHIS, key=lambda phi: best(problem, phi, SHORT, seed))
    return best(problem, phi, LONG, seed) / min(best(problem, name, LONG, seed) for name in CLASSICS)


@claim(
    method="optim.uba",
    paper_id=266,
    baseline="cosine decay",
    statement="At a budget of 100 steps on digits a shape other than cosine is no worse than cosine.",
    quantity="full-data loss, ratio to cosine, each at its best learning rate",
    threshold=1.0,
    note=PAPER_SCALE,
)
def gain_on_digits(seed: int) -> float:
    """MLP, SGD with momentum 0.9, best of phi 0.5, 1 and 5."""
    return gain("digits", seed)


@claim(
    method="optim.uba",
    paper_id=266,
    baseline="cosine decay",
    statement="At a budget of 100 steps on a noisy quadratic a shape other than cosine is no worse than cosine.",
    quantity="mean value, ratio to cosine, each at its best learning rate",
    threshold=1.0,
    note=PAPER_SCALE,
)
def gain_on_a_noisy_quadratic(seed: int) -> float:
    """Condition number 100, 50 variables, unit gradient noise, best of phi 0.5, 1 and 5."""
    return gain("quadratic", seed)


@claim(
    method="optim.uba",
    paper_id=266,
    baseline="best of step decay, cosine and linear decay",
    statement="The shape chosen at 100 steps is within 2% of the best classical schedule at 400 steps, on digits.",
    quantity="full-data loss, ratio, each at its best learning rate",
    threshold=1.02,
    note="The best shape depends on the budget: after 400 steps linear decay is ahead. " + PAPER_SCALE,
)
def shape_carries_over_on_digits(seed: int) -> float:
    """MLP, SGD with momentum 0.9."""
    return carried_over("digits", seed)


@claim(
    method="optim.uba",
    paper_id=266,
    baseline="best of step decay, cosine and linear decay",
    statement="The shape chosen at 100 steps is within 2% of the best classical schedule at 400 steps, on a noisy "
    "quadratic.",
    quantity="mean value, ratio, each at its best learning rate",
    threshold=1.02,
    note="The best shape depends on the budget: 100 steps are short of the slow directions and want phi = 0.5, at 400 "
    "the noise decides and cosine is ahead. " + PAPER_SCALE,
)
def shape_carries_over_on_a_noisy_quadratic(seed: int) -> float:
    """Condition number 100, 50 variables, unit gradient noise."""
    return carried_over("quadratic", seed)


@claim(
    method="optim.uba",
    paper_id=266,
    baseline="the cosine curve",
    statement="phi = 2 is cosine decay.",
    quantity="largest deviation over 1000 steps from lr 1 to 0",
    threshold=1e-12,
    seeds=(0,),
)
def two_is_cosine(seed: int) -> float:
    """Exact property of the formula."""
    course = UBASchedule(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0), 1000)
    return max(abs(course.factor(t) - (1 + math.cos(math.pi * t / 1000)) / 2) for t in range(1001))
