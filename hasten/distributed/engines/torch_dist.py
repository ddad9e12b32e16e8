"""Clients on the ranks of a `torch.distributed` process group; payloads travel as the bytes that they are charged."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.kinds.federate import Federation
from hasten.distributed.compressors import Identity, Payload
from hasten.distributed.engines.base import Engine, Wire

T = TypeVar("T")


class DistWire(Wire):
    """Rank r hosts the clients r, r + world, ...; every rank runs the server on the same gathered messages.

    Since the server is replicated, `broadcast` moves nothing and is not charged. `gather` is an all-gather: a rank
    charges what it hands in as uplink and what it receives from the others as downlink.
    """

    def __init__(self, problem: Federation, key: Tensor, clients: Tensor | None, group: Any) -> None:
        self.group = group
        self.world = dist.get_world_size(group)
        super().__init__(problem, key, clients, self.world, dist.get_rank(group))

    def broadcast(self, message: T) -> T:
        return message

    def gather(self, message: T) -> T:
        if isinstance(message, dict):
            return {name: self.gather(part) for name, part in message.items()}  # type: ignore[return-value]
        if isinstance(message, Tensor):
            if message.ndim == 1:
                return self.gather(message.unsqueeze(-1)).squeeze(-1)  # type: ignore[return-value]
            flat = Identity().compress(message.flatten(1), {})[0]
            return self.gather(flat).dense().view(-1, *message.shape[1:])  # type: ignore[return-value]
        return self._exchange(message)  # type: ignore[return-value, arg-type]

    def _exchange(self, stacked: Payload) -> Payload:
        owners = self.clients % self.world
        counts = torch.bincount(owners, minlength=self.world).tolist()
        mine = stacked.to_tensor()
        hosted = 0 if self._idle else len(mine)
        buffer = mine.new_zeros(max(counts), mine.shape[1])
        buffer[:hosted] = mine[:hosted]
        received = [torch.empty_like(buffer) for _ in range(self.world)]
        dist.all_gather(received, buffer, group=self.group)
        self.problem.up_bytes += hosted * mine.shape[1]
        self.problem.down_bytes += (len(self.clients) - hosted) * mine.shape[1]
        order = torch.cat([(owners == rank).nonzero()[:, 0] for rank in range(self.world)]).argsort()
        return stacked.from_tensor(torch.cat([part[:count] for part, count in zip(received, counts)])[order])


class DistEngine(Engine):
    """One process per rank; every rank runs the same method on the same problem and seed.

    Args:
        group: process group, the default one if not given.

    Raises:
        InputError: torch.distributed is not initialised, or there are fewer clients than ranks.
    """

    def __init__(self, group: Any = None) -> None:
        if not dist.is_available() or not dist.is_initialized():
            raise InputError("DistEngine needs torch.distributed: call init_process_group on every rank first")
        self.group = group

    def open(self, problem: Federation, key: Tensor, clients: Tensor | None) -> DistWire:
        world = dist.get_world_size(self.group)
        if problem.n < world:
            raise InputError(f"{problem.n} clients cannot live on {world} ranks; start at most {problem.n}")
        return DistWire(problem, key, clients, self.group)
