"""What all federated and distributed methods share: rounds on a wire, server and client memory, participation."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.kinds.federate import Federation
from hasten.core.method import Method
from hasten.distributed.compressors import Payload
from hasten.distributed.engines import Client, Engine, SimEngine, Wire
from hasten.numerics import keys

Server = dict[str, Any]
M = TypeVar("M", bound="FederatedMethod")

# Below this many numbers in all clients' vectors together a second thread saves little at best (many small products),
# and waiting for it costs many times the work on a machine that has other things to do.
SMALL = 1 << 22


@dataclass
class RoundState:
    """Between two rounds.

    Attributes:
        server: what the server keeps, at least the model `x` `[d]`.
        memory: what the clients keep, any nest of tensors stacked on the first axis.
        key: source of all randomness.
        round: rounds done.
    """

    server: Server
    memory: Any
    key: Tensor
    round: int = 0

    @property
    def x(self) -> Tensor:
        """The answer: the server's model."""
        return self.server["x"]


class FederatedMethod(Method[Federation, RoundState]):
    """One step is one round. A method writes `round` (and `start`, where clients remember something).

    Attributes:
        engine: where the clients live; `on` changes it.
        participation: share of the clients that take part in a round.
        independent: each client takes part by its own coin, instead of a fixed number of clients.
    """

    engine: Engine = SimEngine()
    participation: float = 1.0
    independent: bool = False

    def on(self: M, engine: Engine) -> M:
        """The same method with its clients on this engine."""
        self.engine = engine
        return self

    def start(self, wire: Wire, x0: Tensor) -> tuple[Server, Any]:
        """Server and client memory before the first round."""
        return {"x": x0}, {}

    @abstractmethod
    def round(self, wire: Wire, server: Server, memory: Any) -> tuple[Server, Any]:
        """Server and client memory after one more round."""

    def init(self, problem: Federation, generator: torch.Generator) -> RoundState:
        key = keys.from_generator(generator)
        with _threads(problem):
            server, memory = self.start(self.engine.open(problem, keys.fold(key, 0), None), problem.x0.detach().clone())
        return RoundState(server, memory, key)

    def step(self, problem: Federation, state: RoundState) -> RoundState:
        key = keys.fold(state.key, state.round + 1)
        clients = participants(problem.n, self.participation, self.independent, key)
        server, memory = state.server, state.memory
        if clients is None or len(clients):
            with _threads(problem):
                server, memory = self.round(self.engine.open(problem, key, clients), server, memory)
        return RoundState(server, memory, state.key, state.round + 1)


@contextmanager
def _threads(problem: Federation) -> Iterator[None]:
    """Run a small problem on one thread, then restore the caller's setting."""
    before = torch.get_num_threads()
    if before == 1 or problem.n * len(problem.x0) > SMALL:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def participants(n: int, share: float, independent: bool, key: Tensor) -> Tensor | None:
    """Numbers of the clients that take part, increasing; None for all of them."""
    if share >= 1.0:
        return None
    draws = keys.uniform(keys.fold(key, 3), n, torch.float64)
    chosen = draws < share if independent else draws.argsort().argsort() < max(1, round(share * n))
    return chosen.nonzero()[:, 0]


def total(messages: Payload | Tensor, weights: Tensor) -> Tensor:
    """Weighted sum `[d]` of the clients' vectors `[m, d]`."""
    return weights @ (messages.dense() if isinstance(messages, Payload) else messages)


def local_sgd(client: Client, x: Tensor, steps: int, lr: float) -> Tensor:
    """The model after `steps` steps of SGD on the client's mini-batches: x <- x - lr grad f_i(x; batch)."""
    for step in range(steps):
        x = torch.sub(x, client.gradient(x, step), alpha=lr)
    return x


def check_participation(value: float) -> float:
    """`value` if it is a share in (0, 1]."""
    return check.real("participation", value, 0.0, 1.0, open_low=True)
