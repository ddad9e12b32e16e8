"""Claims of SMB (Birbil, Martin, Onay, Oztoprak 2021): logistic regression at learning rates up to far too large."""

from __future__ import annotations

import math
from functools import cache
from typing import Any

import torch

from hasten.core.catalogue import problem
from hasten.core.claim import claim
from hasten.optim.step_size.smb import SMB

TARGET = 1e-4
LEARNING_RATES = (1.0, 3.0, 10.0, 30.0, 100.0)


@cache
def iterations(rule: str, lr: float, limit: int = 2000) -> float:
    """Iterations to a gap of 1e-4 on full-batch breast-cancer logistic regression; inf if the limit is not enough."""
    instance: Any = problem("breast-cancer-logreg").build(0)
    x = torch.nn.Parameter(instance.x0.clone())
    optimizer = SMB([x], lr=lr) if rule == "smb" else torch.optim.SGD([x], lr=lr)
    for t in range(limit + 1):
        if instance.metric(x.detach()) <= TARGET:
            return t
        if rule == "smb":
            optimizer.step(lambda: instance.fun(x))
        else:
            x.grad = instance.gradient(x.detach())
            optimizer.step()
    return math.inf


@claim(
    method="optim.smb",
    paper_id=121,
    baseline="gradient descent at the same learning rate",
    statement="SMB converges at learning rates 1 to 100 and takes at most 1.1 times the iterations of gradient descent "
    "where that converges.",
    quantity="largest ratio of iterations to a gap of 1e-4 over the rates where gradient descent converges; inf if SMB "
    "fails at any rate",
    threshold=1.1,
    seeds=(0,),
)
def as_fast_where_descent_converges(seed: int) -> float:
    """Full-batch breast-cancer logistic regression, no randomness; learning rates 1, 3, 10, 30, 100."""
    if any(math.isinf(iterations("smb", lr)) for lr in LEARNING_RATES):
        return math.inf
    works = [lr for lr in LEARNING_RATES if math.isfinite(iterations("descent", lr))]
    return max(iterations("smb", lr) / iterations("descent", lr) for lr in works)


@claim(
    method="optim.smb",
    paper_id=121,
    baseline="gradient descent at the same learning rate, which fails in 2000 iterations",
    statement="At learning rates 30 and 100, where gradient descent fails in 2000 iterations, SMB takes at most 100.",
    quantity="iterations to a gap of 1e-4, the larger of the two; inf if gradient descent does not fail",
    threshold=100.0,
    seeds=(0,),
)
def converges_where_descent_fails(seed: int) -> float:
    """Full-batch breast-cancer logistic regression, no randomness."""
    if any(math.isfinite(iterations("descent", lr)) for lr in (30.0, 100.0)):
        return math.inf
    return max(iterations("smb", lr) for lr in (30.0, 100.0))
