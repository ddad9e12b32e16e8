"""Data-parallel (stochastic) gradient descent without compression: the baseline of compressed training."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.registry import register
from hasten.distributed.base import FederatedMethod, Server, total
from hasten.distributed.compressors import Identity
from hasten.distributed.engines import Wire

CARD = Card(
    name="dp-sgd",
    family="distributed",
    title="Data-parallel SGD (uncompressed, synchronous)",
    authors="classical baseline",
    year=2012,
    summary="Every worker sends its whole gradient, the server steps along their mean.",
    cost="one gradient per worker; 4d bytes up and 4d down in float32; no state",
    when="the wire is not the bottleneck; the baseline of everything compressed",
    kinds=("federate",),
    use="""import hasten
from hasten.distributed import DataParallelSGD

trace = hasten.run(DataParallelSGD(momentum=0.0{hyper}), hasten.problem("hetero-quadratic"))""",
    search_space={"lr": LogReal(1e-3, 3.0)},
)


@register(CARD)
class DataParallelSGD(FederatedMethod):
    """Gradient descent over workers: m <- momentum m + mean_i grad f_i(x), x <- x - lr m.

    Args:
        lr: step size.
        momentum: heavy-ball momentum of the server.
        wire: dtype in which gradients travel up; that of the model if not given.
    """

    card = CARD

    def __init__(self, lr: float = 0.1, momentum: float = 0.0, wire: torch.dtype | None = None) -> None:
        self.lr = float(check.positive("lr", lr))
        self.momentum = float(check.fraction("momentum", momentum))
        self.codec = Identity(wire)

    def start(self, wire: Wire, x0: Tensor) -> tuple[Server, Any]:
        return {"x": x0, "m": torch.zeros_like(x0)}, {}

    def round(self, wire: Wire, server: Server, memory: Any) -> tuple[Server, Any]:
        messages, memory = wire.each(
            lambda one, x, _: one.compress(self.codec, one.gradient(x), {}), wire.broadcast(server["x"]), steps=1
        )
        m = self.momentum * server["m"] + total(wire.gather(messages), wire.weights)
        return {"x": server["x"] - self.lr * m, "m": m}, memory
