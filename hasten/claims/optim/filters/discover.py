"""Claims of Tondji et al. 2021: cluster memories take the variance between clusters out of the gradient."""

from __future__ import annotations

import math
import statistics

import torch
from torch import Tensor, nn

from hasten.core.claim import claim
from hasten.optim.filters.discover import Discover

CLUSTERS, SIZE, DIMENSIONS = 10, 100, 5
RATES = (0.003, 0.01, 0.03)
NOTE = (
    "Least squares in 5 dimensions, 10 clusters of 100 inputs around centres 10 times as far apart as they are wide, "
    "with a target offset for each; batches of 20 from one cluster at a time, momentum 0.9, gamma 0.1. The paper has "
    "classes of CIFAR and ImageNet as clusters."
)


class Clustered:
    """`f(w) = mean (x.w - y)^2 / 2` over inputs in well-separated clusters, or with labels that say nothing."""

    def __init__(self, seed: int, shuffled: bool = False) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        centres, near = self._normal(CLUSTERS, 1, DIMENSIONS), self._normal(CLUSTERS, SIZE, DIMENSIONS)
        inputs = centres + 0.1 * near
        targets = inputs @ self._normal(DIMENSIONS) + self._normal(CLUSTERS, 1)
        self.inputs, self.targets = inputs.reshape(-1, DIMENSIONS), targets.reshape(-1)
        labels = torch.arange(CLUSTERS).repeat_interleave(SIZE)
        if shuffled:
            labels = labels[torch.randperm(len(labels), generator=self.generator)]
        self.members = [(labels == cluster).nonzero()[:, 0] for cluster in range(CLUSTERS)]
        best = torch.linalg.lstsq(self.inputs, self.targets).solution
        self.least = self.loss(best)
        self.w = nn.Parameter(torch.zeros(DIMENSIONS, dtype=torch.float64))

    def _normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def loss(self, w: Tensor) -> float:
        return float((self.inputs @ w - self.targets).square().mean() / 2)

    def gradient(self, w: Tensor, rows: Tensor | None = None) -> Tensor:
        inputs, targets = (self.inputs, self.targets) if rows is None else (self.inputs[rows], self.targets[rows])
        return inputs.T @ (inputs @ w - targets) / len(targets)

    def batch(self) -> tuple[int, Tensor]:
        """A cluster and 20 rows of it."""
        cluster = int(torch.randint(CLUSTERS, (), generator=self.generator))
        return cluster, self.members[cluster][torch.randint(SIZE, (20,), generator=self.generator)]


def train(seed: int, lr: float, corrected: bool, shuffled: bool = False, whole: bool = False) -> tuple[float, float]:
    """SGD with momentum for 3000 steps, or (unless `whole`) until the gap is at most 1e-4 for 20 steps.

    Returns the first of these 20 steps (inf if there are none), and the mean squared error of the direction over that
    of the batch gradient.
    """
    problem = Clustered(seed, shuffled)
    optimizer = torch.optim.SGD([problem.w], lr=lr, momentum=0.9)
    discover = Discover(optimizer, CLUSTERS) if corrected else None
    errors: tuple[list[float], list[float]] = ([], [])
    below = 0
    for step in range(1, 3001):
        cluster, rows = problem.batch()
        point = problem.w.detach()
        problem.w.grad = problem.gradient(point, rows)
        raw, true = problem.w.grad.clone(), problem.gradient(point)
        if discover is not None:
            discover.observe(cluster)
        optimizer.step()
        for kept, direction in zip(errors, (problem.w.grad, raw)):
            kept.append(float((direction - true).square().sum()))
        below = below + 1 if problem.loss(problem.w.detach()) - problem.least <= 1e-4 else 0
        if below == 20 and not whole:
            return step - 19, math.nan
    return math.inf, statistics.fmean(errors[0]) / statistics.fmean(errors[1])


@claim(
    method="optim.discover",
    paper_id=107,
    baseline="the batch gradient at the same points",
    statement="The mean squared error of the direction over 3000 steps is at most 0.2 times the batch gradient's.",
    quantity="mean squared distance to the full gradient over 3000 steps, ratio to the batch gradient",
    threshold=0.2,
    seeds=(0, 1, 2, 3, 4),
    note=NOTE
    + " The error is that of all 3000 steps; over runs that end on arrival it is 0.335, because they are mostly "
    "filling the memory.",
)
def error_of_the_direction(seed: int) -> float:
    """Least squares in clusters, learning rate 0.003."""
    return train(seed, 0.003, True, whole=True)[1]


@claim(
    method="optim.discover",
    paper_id=107,
    baseline="SGD with momentum, both at their best of three learning rates",
    statement="It comes to a gap of 1e-4 in at most 0.6 times the steps.",
    quantity="steps to a gap of 1e-4 that lasts 20 steps, ratio to SGD with momentum at its best learning rate",
    threshold=0.6,
    seeds=(0, 1, 2, 3, 4),
    note=NOTE + " Learning rates 0.003, 0.01 and 0.03; 3000 steps count where SGD does not arrive.",
)
def steps_to_the_gap(seed: int) -> float:
    """Least squares in clusters."""
    ours, theirs = (min(train(seed, lr, corrected)[0] for lr in RATES) for corrected in (True, False))
    return ours / min(theirs, 3000)


@claim(
    method="optim.discover",
    paper_id=107,
    baseline="the batch gradient at the same points",
    statement="Labels drawn at random give no gain.",
    quantity="mean squared distance to the full gradient over 3000 steps, ratio to the batch gradient",
    threshold=(0.9, 1.1),
    relation="in",
    seeds=(0, 1, 2, 3, 4),
    note=NOTE + " The control: the same inputs, clusters drawn at random.",
)
def random_clusters(seed: int) -> float:
    """Least squares in clusters that the labels do not tell."""
    return train(seed, 0.003, True, shuffled=True, whole=True)[1]
