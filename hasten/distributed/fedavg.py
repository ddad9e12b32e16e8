"""Federated averaging (McMahan et al., 2016), with all clients also known as local SGD (Stich, 2018)."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Integer, LogReal
from hasten.core.registry import register
from hasten.distributed.base import FederatedMethod, Server, check_participation, local_sgd, total
from hasten.distributed.engines import Client, Wire

CARD = Card(
    name="fedavg",
    family="distributed",
    title="Communication-Efficient Learning of Deep Networks from Decentralized Data",
    authors="McMahan, Moore, Ramage, Hampson, Arcas",
    year=2016,
    arxiv="1602.05629",
    summary="Clients take several local steps between two averages of their models.",
    cost="`local_steps` gradients per client and round; the model down and its change up; no state",
    when="the wire is slow and the clients are not too unlike; the baseline of federated learning",
    kinds=("federate",),
    use="""import hasten
from hasten.distributed import FedAvg

trace = hasten.run(FedAvg(server_lr=1.0{hyper}), hasten.problem("digits-federated"), budget=100)""",
    search_space={"lr": LogReal(1e-3, 3.0), "local_steps": Integer(1, 20, log=True)},
)


@register(CARD)
class FedAvg(FederatedMethod):
    """Federated averaging, local SGD.

        client: x_i <- x, then K times x_i <- x_i - lr grad f_i(x_i; batch);   sends x_i - x
        server: x <- x + server_lr sum_i w_i (x_i - x),   sum over the round's clients, sum w_i = 1

    With unlike clients and K > 1 it stops at an error of the order of lr K.

    Args:
        lr: local step size.
        local_steps: K.
        server_lr: step size of the server, 1 for plain averaging.
        participation: share of the clients in a round, drawn without replacement.
        weighting: w_i by `samples` (the client's share in the objective), or `uniform`.
    """

    card = CARD

    def __init__(
        self,
        lr: float = 0.1,
        local_steps: int = 5,
        server_lr: float = 1.0,
        participation: float = 1.0,
        weighting: str = "samples",
    ) -> None:
        self.lr = float(check.positive("lr", lr))
        self.local_steps = check.integer("local_steps", local_steps, 1)
        self.server_lr = float(check.positive("server_lr", server_lr))
        self.participation = check_participation(participation)
        self.weighting = check.one_of("weighting", weighting, ("samples", "uniform"))

    def client(self, one: Client, x: Tensor, _: Any) -> tuple[Tensor, tuple[()]]:
        """What one client does in a round."""
        return local_sgd(one, x, self.local_steps, self.lr) - x, ()

    def round(self, wire: Wire, server: Server, memory: Any) -> tuple[Server, Any]:
        x = wire.broadcast(server["x"])
        changes, _ = wire.each(self.client, x, steps=self.local_steps)
        weights = wire.weights if self.weighting == "samples" else wire.weights.new_ones(len(wire.clients))
        return {"x": x + self.server_lr * total(wire.gather(changes), weights / weights.sum())}, memory
