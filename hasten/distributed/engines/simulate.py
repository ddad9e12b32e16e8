"""All clients in this process, stacked and run under `torch.func.vmap`."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from hasten.core.kinds.federate import Federation
from hasten.distributed.engines.base import Engine, Wire

T = TypeVar("T")


class SimWire(Wire):
    """Nothing moves; bytes are counted as if it did."""

    def broadcast(self, message: T) -> T:
        self.problem.downlink(message, len(self.clients))
        return message

    def gather(self, message: T) -> T:
        self.problem.uplink(message)
        return message


class SimEngine(Engine):
    """Every client in this process; the default."""

    def open(self, problem: Federation, key: Tensor, clients: Tensor | None) -> SimWire:
        return SimWire(problem, key, clients)
