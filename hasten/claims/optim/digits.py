"""What several claims measure on `digits-mlp`: steps to the target at a learning rate, or at the best of a grid."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch

import hasten
from hasten.core.kinds.train import Training
from hasten.core.registry import entry

ADAM = "optim.adam"
GRID = (1e-3, 3e-3, 1e-2, 3e-2)


@cache
def _steps(method: str, seed: int, hyper: tuple[tuple[str, Any], ...]) -> float:
    return hasten.run(hasten.get(method).make(**dict(hyper)), hasten.problem("digits-mlp"), seed).cost_to()


def steps(method: str, seed: int, **hyper: Any) -> float:
    """Steps to a full-data cross entropy of 0.1, inf if 600 are not enough."""
    return _steps(method, seed, tuple(sorted(hyper.items())))


def best_steps(method: str, seed: int, grid: Iterable[float] = GRID, **hyper: Any) -> float:
    """Steps at the best learning rate of the grid."""
    return min(steps(method, seed, lr=lr, **hyper) for lr in grid)


class NoisyGrad:
    """Adds Gaussian noise of a deviation to every gradient entry."""

    def __init__(self, std: float, seed: int) -> None:
        self.std = std
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, parameters: Iterable[torch.Tensor]) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            parameter.grad.add_(torch.randn(parameter.shape, generator=self.generator), alpha=self.std)


class SpikyGrad:
    """Multiplies the gradient, or a random share of its entries, by a factor in a random share of the steps."""

    def __init__(self, seed: int, prob: float = 0.02, factor: float = 1000.0, per_entry: float = 1.0) -> None:
        self.prob, self.factor, self.per_entry = prob, factor, per_entry
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, parameters: Iterable[torch.Tensor]) -> None:
        if float(torch.rand((), generator=self.generator)) >= self.prob:
            return
        for parameter in parameters:
            assert parameter.grad is not None
            hit = torch.rand(parameter.shape, generator=self.generator) < self.per_entry
            parameter.grad.mul_(torch.where(hit, self.factor, 1.0))


def disturbed_loss(
    instance: Training,
    optimizer: torch.optim.Optimizer,
    disturb: Callable[[Iterable[torch.Tensor]], None],
    length: int,
    limit: float = math.inf,
) -> float:
    """Full-data loss after training with gradients disturbed before each step, and clipped to the norm `limit`."""
    for _ in range(length):
        instance.gradient()
        disturb(instance.parameters)
        if math.isfinite(limit):
            torch.nn.utils.clip_grad_norm_(instance.parameters, limit)
        optimizer.step()
    return instance.metric(instance.model)


def noisy_loss(method: str, seed: int, lr: float = 3e-3, std: float = 0.05, length: int = 300, **hyper: Any) -> float:
    """Full-data loss after training with Gaussian noise of this deviation added to every gradient entry."""
    instance = hasten.problem("digits-mlp").build(seed)
    assert isinstance(instance, Training)
    optimizer = entry(method).target(instance.model.parameters(), lr=lr, **hyper)
    return disturbed_loss(instance, optimizer, NoisyGrad(std, seed), length)


def ratio(ours: float, theirs: float) -> float:
    """`ours / theirs`; inf where ours never arrived."""
    return ours / theirs if math.isfinite(ours) else math.inf


def state_ratio(make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]) -> float:
    """Bytes of state on the 64x64 layers after one step, over those of Adam; step counters left out."""
    sizes = []
    for build in (make, torch.optim.Adam):
        instance = hasten.problem("digits-mlp").build(0)
        assert isinstance(instance, Training)
        optimizer = build(instance.parameters)
        instance.gradient()
        optimizer.step()
        square = [parameter for parameter in instance.parameters if parameter.shape == (64, 64)]
        held = [value for parameter in square for value in optimizer.state[parameter].values()]
        sizes.append(sum(value.nbytes for value in held if torch.is_tensor(value) and value.ndim > 0))
    return sizes[0] / sizes[1]
