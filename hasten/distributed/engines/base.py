"""What a method sees of one round: its clients, and the wire between them and the server."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.func import vmap
from torch.utils import _pytree

from hasten.core.kinds.federate import Federation, at
from hasten.distributed.compressors import Compressor, Payload
from hasten.numerics import keys

Message = Any
Memory = Any
Function = Callable[..., tuple[Message, Memory]]
T = TypeVar("T")


@dataclass(frozen=True)
class Client:
    """One client during one round. All tensors are its own, without a leading axis (they are mapped by `vmap`).

    Attributes:
        id: number of the client.
        key: its key for this round.
        common_key: the round's key, the same for every client.
        weight: its share in the objective.
        batches: its mini-batches of this round, `[steps, ...]`.
    """

    problem: Federation = field(repr=False)
    id: Tensor
    key: Tensor
    common_key: Tensor
    weight: Tensor
    batches: Any = field(repr=False)
    width: int = 1

    def gradient(self, x: Tensor, step: int = 0) -> Tensor:
        """Gradient at `x` on mini-batch number `step`; counted."""
        return self.problem.gradient(x, at(self.batches, step), self.width)

    def compress(
        self, compressor: Compressor, v: Tensor, state: dict[str, Tensor]
    ) -> tuple[Payload, dict[str, Tensor]]:
        """The payload of `v` under the client's (or the round's common) key, and the compressor's next state."""
        return compressor.compress(v, state, self.common_key if compressor.common_key else self.key)


class Wire(ABC):
    """One round: `each` runs a function on every participating client, `broadcast` and `gather` move messages.

    Everything that moves is counted by the problem. A message is a tensor, a `Payload`, or a dictionary of such; the
    server sees the clients' messages stacked on the first axis, in the order of `clients`.

    Args:
        problem: where the oracles and counters are.
        key: the round's key.
        clients: numbers of the participating clients, increasing; all if None.
        world, rank: this process hosts the clients `rank, rank + world, ...`.
    """

    def __init__(self, problem: Federation, key: Tensor, clients: Tensor | None, world: int = 1, rank: int = 0) -> None:
        self.problem = problem
        self.key = key
        self.n = problem.n
        self.clients = torch.arange(problem.n) if clients is None else clients
        self.weights = problem.weights[self.clients]
        self.mine = self.clients[self.clients % world == rank]
        self._rows = None if clients is None else self.mine // world
        # A process without a participant still runs one client, uncounted, to know the form of the messages.
        self._idle = len(self.mine) == 0
        if self._idle:
            self.mine, self._rows = torch.tensor([rank]), torch.tensor([0])

    def each(self, function: Function, down: Message = None, memory: Memory = None, steps: int = 0) -> Any:
        """`(messages, memory)` of `function(client, down, row of memory)` run on every participant.

        Args:
            function: pure, of one client; returns its message and what it remembers.
            down: what the server sent, the same for all.
            memory: what all clients of this process remember, any nest of tensors `[clients here, ...]`; those who
                do not take part keep theirs.
            steps: mini-batches to draw for each client.
        """
        problem, mine = self.problem, self.mine
        key = keys.fold(self.key, mine)
        batches = problem.draw(mine, steps, keys.fold(key, 1)) if steps else ()
        rows = memory if self._rows is None or memory is None else _map(lambda t: t[self._rows], memory)
        width = 0 if self._idle else len(mine)

        def one(number: Tensor, key: Tensor, weight: Tensor, batches: Any, row: Memory) -> tuple[Message, Memory]:
            client = Client(problem, number, keys.fold(key, 2), self.key, weight, batches, width)
            return function(client, down, row)

        stacked = vmap(one, in_dims=(0, 0, 0, 0, None if memory is None else 0), randomness="different")
        message, kept = stacked(mine, key, problem.weights[mine], batches, rows)
        if self._idle:
            return message, memory
        if self._rows is not None and memory is not None:
            kept = _pytree.tree_map(lambda old, new: old.index_copy(0, self._rows, new), memory, kept)
        return message, kept

    @abstractmethod
    def broadcast(self, message: T) -> T:
        """Send from the server to every participant."""

    @abstractmethod
    def gather(self, message: T) -> T:
        """Send from every participant to the server: all messages, stacked in the order of `clients`."""

    def maximum(self, values: Tensor) -> Tensor:
        """Entrywise largest of the clients' vectors, known to all of them afterwards (an all-reduce)."""
        return self.broadcast(self.gather(values).amax(0))


class Engine(ABC):
    """Where clients live."""

    @abstractmethod
    def open(self, problem: Federation, key: Tensor, clients: Tensor | None) -> Wire:
        """The wire of one round."""


def _map(function: Callable[[Tensor], Tensor], tree: Any) -> Any:
    return _pytree.tree_map(function, tree)
