"""What several claims measure on `amsgrad-counterexample`: where an optimizer ends on the online problem."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

import hasten
from hasten.core.kinds.minimise import Minimisation

BETAS = (0.0, 0.1)
"""No momentum and `b2 = 1 / (1 + C^2)` for C = 3, with which Adam fails."""


def last_iterate(make: Callable[..., torch.optim.Optimizer], **hyper: Any) -> float:
    """Last of 9000 projected steps from 0 with `BETAS` and the learning rate 0.5/sqrt(t); the optimum is -1."""
    instance = hasten.problem("amsgrad-counterexample").build(0)
    assert isinstance(instance, Minimisation)
    x = torch.nn.Parameter(instance.x0.clone())
    optimizer = make([x], lr=0.5, betas=BETAS, **hyper)
    for t in range(1, 9001):
        optimizer.param_groups[0]["lr"] = 0.5 / t**0.5
        x.grad = instance.gradient(x.detach())
        optimizer.step()
        with torch.no_grad():
            x.copy_(instance.prox(x, 1.0))
    return x.item()
