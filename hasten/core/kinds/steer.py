"""Kind `steer`: drawing from a density that is made of a diffusion model's, without training another model."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.problem import Instance


class Particles(NamedTuple):
    """Weighted samples: positions (n, ...) and logarithms of the weights (n,), known up to a constant."""

    x: Tensor
    log_weights: Tensor

    @property
    def weights(self) -> Tensor:
        """Weights of sum 1."""
        return self.log_weights.softmax(0)


class Steering(Instance):
    """Particles to be drawn from a target density. The answer (`state.x`) is `Particles`.

    Oracle: the networks behind the target, counted as `nfe`: evaluations per particle; a backward pass through a
    network counts as one more. `horizon` is the number of steps to plan with.

    Args:
        target: the density, from `hasten.numerics.targets`; this instance counts its calls.
        count: number of particles.
        metric: distance of the particles from the goal; not counted.
        rungs: numbers of steps to try, increasing.
        dtype, device: of the particles.
    """

    kind = "steer"

    def __init__(
        self,
        target: Any,
        count: int,
        metric: Callable[[Particles], float],
        rungs: Sequence[int] = (),
        *,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__()
        self.count = check.integer("count", count, 2)
        self.target = target.counted(self._count, count)
        self.dtype, self.device = dtype, torch.device(device)
        self.rungs = tuple(rungs)
        self._metric = metric

    def metric(self, x: Particles) -> float:
        return float(self._metric(x))

    def _count(self, evaluations: int) -> None:
        self.calls["nfe"] += evaluations
