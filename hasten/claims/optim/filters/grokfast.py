"""Claims of Grokfast (Lee et al. 2024): the gain of the filter, and the speed it gives slow directions."""

from __future__ import annotations

import math

import torch

from hasten.core.claim import claim
from hasten.optim.filters.grokfast import GrokfastEMA

NOTE = (
    "The paper's own claim, grokking on modular addition more than 50 times earlier, needs the one-layer transformer "
    "at modulus 97 on a GPU; it is not measured here. A small MLP (53 classes, 60 % train, AdamW) shows no gain."
)


def last_gain(alternating: bool) -> float:
    """What the last of 1000 gradients is multiplied by; the first entry is constant, the second alternates."""
    x = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=0.0)
    GrokfastEMA(optimizer)
    gain = math.nan
    for step in range(1000):
        raw = -1.0 if alternating and step % 2 else 1.0
        x.grad = torch.full_like(x, raw)
        optimizer.step()
        gain = float(x.grad) / raw
    return gain


@claim(
    method="optim.grokfast",
    paper_id=154,
    baseline="the unfiltered gradient",
    statement="A constant gradient is amplified 1 + lamb = 3 times.",
    quantity="distance of the gain from 3 after 1000 steps",
    threshold=1e-3,
    seeds=(0,),
    note=NOTE,
)
def gain_of_a_constant_gradient(seed: int) -> float:
    """Exact property of the filter."""
    return abs(last_gain(alternating=False) - 3.0)


@claim(
    method="optim.grokfast",
    paper_id=154,
    baseline="the unfiltered gradient",
    statement="A gradient of alternating sign is amplified only 1 + lamb (1-alpha)/(1+alpha) = 1.0202 times.",
    quantity="distance of the gain from 1.0202 after 1000 steps",
    threshold=1e-3,
    seeds=(0,),
    note=NOTE,
)
def gain_of_an_alternating_gradient(seed: int) -> float:
    """Exact property of the filter."""
    return abs(last_gain(alternating=True) - (1 + 2 * 0.02 / 1.98))


def steps_of_slow_coordinate(lr: float, filtered: bool) -> int:
    """Gradient descent on curvatures (0.01, 1) from (1, 0): steps until the slow coordinate is at 10 %."""
    x = torch.nn.Parameter(torch.tensor([1.0, 0.0], dtype=torch.float64))
    curvature = torch.tensor([1e-2, 1.0], dtype=torch.float64)
    optimizer = torch.optim.SGD([x], lr=lr)
    if filtered:
        GrokfastEMA(optimizer)
    for step in range(1, 10_000):
        x.grad = curvature * x.detach()
        optimizer.step()
        if abs(float(x.detach()[0])) <= 0.1:
            return step
    return 10_000


@claim(
    method="optim.grokfast",
    paper_id=154,
    baseline="gradient descent at the same learning rate",
    statement="Slow directions of a quadratic arrive in at most 0.4 times the steps, at every learning rate of four.",
    quantity="steps to 10 % of the slow coordinate, ratio to gradient descent, worst of learning rates 0.1 to 1",
    threshold=0.4,
    seeds=(0,),
    note=NOTE,
)
def slow_directions(seed: int) -> float:
    """Curvatures (0.01, 1), lamb = 2, learning rates 0.1, 0.3, 0.5, 1."""
    rates = (0.1, 0.3, 0.5, 1.0)
    return max(steps_of_slow_coordinate(lr, True) / steps_of_slow_coordinate(lr, False) for lr in rates)
