"""Metrics over held-out data that are read only when the metric is first taken."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from torch import Tensor, nn

from hasten.core.kinds.train import mean_loss


def held_out(
    loss: Callable[[Tensor, Tensor], Tensor], data: Callable[[], tuple[Tensor, Tensor]], batch_size: int = 4096
) -> Callable[[nn.Module], float]:
    """Mean loss of the network over the `(inputs, labels)` that `data` returns."""

    @cache
    def measure() -> Callable[[nn.Module], float]:
        return mean_loss(loss, *data(), batch_size=batch_size)

    return lambda network: measure()(network)
