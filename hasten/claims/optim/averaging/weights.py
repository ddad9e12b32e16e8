"""Claims of latest-weight averaging (Kaddour 2022) on a noisy quadratic and on digits."""

from __future__ import annotations

from functools import cache

import torch

from hasten.core.catalogue import problem
from hasten.core.claim import claim
from hasten.optim.adapter import Point
from hasten.optim.averaging.weights import LatestWeightAverage

PAPER_SCALE = "The paper's savings are of ResNet-50 on ImageNet and RoBERTa-base, with k of 6 to 10 epochs."


@claim(
    method="optim.lawa",
    paper_id=199,
    baseline="the last iterate of the same run",
    statement="On a noisy quadratic at constant rate, the mean of 5 checkpoints has at most 0.3 times the loss.",
    quantity="stationary loss, ratio to the last iterate",
    threshold=0.3,
    note="Theory: 1/5 for independent checkpoints. " + PAPER_SCALE,
)
def noisy_quadratic(seed: int) -> float:
    """Condition number 10, 50 variables, unit gradient noise, SGD at 0.05, a checkpoint every 60 steps."""
    instance = problem("quadratic", dim=50, cond=10.0, noise=1.0).build(seed)
    point = Point(instance.x0)  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(point.parameters(), lr=0.05)
    average = LatestWeightAverage(point, k=5, every=60)
    last = mean = 0.0
    for step in range(1, 60 * 80 + 1):
        point.x.grad = instance.gradient(point.x.detach())  # type: ignore[attr-defined]
        optimizer.step()
        average.step()
        if step % 60 == 0 and step > 60 * 10:
            last += instance.metric(point.x)
            mean += instance.metric(average.averaged_model.x)  # type: ignore[arg-type]
    return mean / last


@cache
def digits_losses(seed: int) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Full-data loss of the trained network and of the average at every checkpoint of 600 steps."""
    instance = problem("digits-mlp", batch=16).build(seed)
    model = instance.model  # type: ignore[attr-defined]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    average = LatestWeightAverage(model, k=5, every=30)
    last, mean = [], []
    for step in range(1, 601):
        instance.gradient()  # type: ignore[attr-defined]
        optimizer.step()
        average.step()
        if step % 30 == 0:
            last.append(instance.metric(model))
            mean.append(instance.metric(average.averaged_model))
    return tuple(last), tuple(mean)


@claim(
    method="optim.lawa",
    paper_id=199,
    baseline="the last iterate of the same run",
    statement="The average reaches a loss of 0.05 on digits within 600 steps and the last iterate does not, on two of "
    "three seeds.",
    quantity="share of seeds on which only the average arrives",
    relation=">=",
    threshold=0.66,
    aggregate="mean",
    note="0.66 stands for two thirds. After 600 steps the average is at 0.06, the last iterate at 0.072 to 0.075: the "
    "average is ahead, but this horizon is about a hundred steps too short for 0.05. " + PAPER_SCALE,
)
def arrives_where_the_last_iterate_does_not(seed: int) -> float:
    """Digits MLP, SGD at 0.2, batch 16, a checkpoint every 30 steps, k = 5."""
    last, mean = digits_losses(seed)
    return float(min(mean) <= 0.05 < min(last))


@claim(
    method="optim.lawa",
    paper_id=199,
    baseline="the last iterate of the same run",
    statement="After 600 steps on digits the average is no worse than the last iterate, on every seed.",
    quantity="final loss, ratio to the last iterate",
    threshold=1.0,
    aggregate="max",
    note=PAPER_SCALE,
)
def final_loss_no_worse(seed: int) -> float:
    """Digits MLP, SGD at 0.2, batch 16, a checkpoint every 30 steps, k = 5."""
    last, mean = digits_losses(seed)
    return mean[-1] / last[-1]
