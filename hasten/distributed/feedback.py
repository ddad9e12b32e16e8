"""Error feedback as one state machine, of which naive compression, EF14, EF21 and EControl are settings.

Client i, with share p_i in the objective, keeps an error e_i and an estimate h_i; the server h = sum_i w_i h_i.
One round at the server's model x:

    g_i = (p_i/w_i) grad f_i(x)
    D_i = C(eta e_i + g_i - h_i)          sent
    e_i <- e_i + g_i - h_i - D_i          if eta > 0
    h_i <- h_i + D_i                      if tracking
    x   <- x - lr (h + sum_i w_i D_i),    and h <- h + sum_i w_i D_i if tracking

| method            | eta        | tracking |
| ---               | ---        | ---      |
| naive compression | 0          | no       |
| EF14              | 1          | no       |
| EF21              | 0          | yes      |
| EControl          | in between | yes      |
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.kinds.federate import Federation
from hasten.distributed.base import FederatedMethod, Server, check_participation, total
from hasten.distributed.compressors import Compressor, Identity, TopK
from hasten.distributed.engines import Client, Wire


@dataclass(frozen=True)
class Settings:
    """The machine's constants on one problem: step size, feedback strength, w_i `[n]`."""

    lr: float
    eta: float
    weights: Tensor


class Feedback(FederatedMethod):
    """The machine above. Methods set the switches and, in `settings`, the constants.

    Attributes:
        tracking: whether the clients keep an estimate of their gradient.
        eta: strength of the error feedback.
        momentum: the gradient is averaged, v_i <- (1 - momentum) g_i + momentum v_i, before it is compressed.
    """

    independent = True
    tracking: bool = True
    eta: float = 0.0
    momentum: float = 0.0

    def __init__(
        self, compressor: Compressor | None, lr: float | None, init: str = "exact", participation: float = 1.0
    ) -> None:
        self.compressor = TopK(0.1) if compressor is None else compressor
        self.lr = None if lr is None else float(check.positive("lr", lr))
        self.from_zero = check.one_of("init", init, ("exact", "zero")) == "zero" or not self.tracking
        self.participation = check_participation(participation)

    def settings(self, problem: Federation) -> Settings:
        """The constants on this problem."""
        return Settings(self.lr or 0.1, self.eta, problem.weights)

    def start(self, wire: Wire, x0: Tensor) -> tuple[Server, Any]:
        settings = self.settings(wire.problem)
        zero = torch.zeros_like(x0)

        def client(one: Client, x: Tensor) -> tuple[Any, dict[str, Any]]:
            scale = one.weight / settings.weights[one.id]
            message, _ = one.compress(Identity(), zero if self.from_zero else scale * one.gradient(x), {})
            h = message.dense()
            memory: dict[str, Any] = {"scale": scale, "codec": self.compressor.init(len(x0), one.id)}
            used = {"h": self.tracking, "e": settings.eta > 0, "v": self.momentum > 0}
            return message, memory | {name: zero if name == "e" else h for name, use in used.items() if use}

        if self.from_zero:
            _, memory = wire.each(lambda one, x, _: client(one, x), x0)
            return {"x": x0, "h": zero, "settings": settings}, memory
        message, memory = wire.each(lambda one, x, _: client(one, x), wire.broadcast(x0), steps=1)
        return {"x": x0, "h": total(wire.gather(message), settings.weights), "settings": settings}, memory

    def client(self, eta: float, one: Client, x: Tensor, memory: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """What one client does in a round."""
        kept = dict(memory)
        g = memory["scale"] * one.gradient(x)
        if self.momentum:
            g = kept["v"] = (1 - self.momentum) * g + self.momentum * memory["v"]
        residual = g - memory["h"] if self.tracking else g
        wanted = eta * memory["e"] + residual if eta else residual
        message, kept["codec"] = one.compress(self.compressor, wanted, memory["codec"])
        sent = message.dense()
        if eta:
            kept["e"] = memory["e"] + residual - sent
        if self.tracking:
            kept["h"] = memory["h"] + sent
        return message, kept

    def round(self, wire: Wire, server: Server, memory: Any) -> tuple[Server, Any]:
        settings: Settings = server["settings"]
        messages, memory = wire.each(partial(self.client, settings.eta), wire.broadcast(server["x"]), memory, steps=1)
        h = server["h"] + total(wire.gather(messages), settings.weights[wire.clients])
        x = server["x"] - settings.lr * h
        return server | {"x": x, "h": h if self.tracking else server["h"]}, memory
