"""TernGrad (Wen et al., 2017)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.core.registry import register
from hasten.distributed.base import FederatedMethod, Server
from hasten.distributed.compressors import Payload, Ternary, TernarySum
from hasten.distributed.engines import Client, Wire

CARD = Card(
    name="terngrad",
    family="distributed",
    title="TernGrad: Ternary Gradients to Reduce Communication in Distributed Deep Learning",
    authors="Wen, Xu, Yan, Wu, Wang, Chen, Li",
    year=2017,
    arxiv="1705.07878",
    paper_id=234,
    summary="Gradients travel as -1, 0, 1 at random times a scale that all workers share, both ways.",
    cost="O(d) work; 2 bits per entry up, log2(2n+1) bits down, one float per tensor each way; no state",
    when="data-parallel training whose wire is the bottleneck, also as a DDP communication hook",
    kinds=("federate",),
    use="""import hasten
from hasten.distributed import TernGrad

trace = hasten.run(TernGrad(clip_sigma=2.5{hyper}), hasten.problem("digits-federated"), budget=100)""",
    search_space={"lr": LogReal(1e-3, 1.0)},
)


@register(CARD)
class TernGrad(FederatedMethod):
    """Data-parallel SGD whose gradients travel as ternary numbers in both directions.

        per tensor: g_i <- clamp(g_i, -c sigma_i, c sigma_i),   s = max_i max|g_i|
        worker i sends t_i = sign(g_i) Bernoulli(|g_i|/s), the server the integers sum_i t_i
        m <- momentum m + (s/n) sum_i t_i,   x <- x - lr m   on every worker

    Unbiased for the clamped gradient; g_i carries the factor n w_i where clients have unequal shares w_i. Workers
    hold equal copies of x, so x never travels. Tensors of one entry and those named in `skip` travel in full precision.

    Args:
        lr, momentum: of the SGD step on every worker.
        clip_sigma: c, 0 for no clipping.
        shared_scale: one scale for all workers; otherwise each has its own and the mean comes down in full precision.
        skip: names of tensors to leave alone, `last` for the last weight and bias.

    Raises:
        InputError: a name in `skip` that the problem's model does not have.
    """

    card = CARD

    def __init__(
        self,
        lr: float = 0.1,
        momentum: float = 0.0,
        clip_sigma: float = 2.5,
        shared_scale: bool = True,
        skip: tuple[str, ...] = (),
    ) -> None:
        self.lr = float(check.positive("lr", lr))
        self.momentum = float(check.fraction("momentum", momentum))
        self.clip_sigma = float(check.nonnegative("clip_sigma", clip_sigma))
        self.shared_scale = bool(shared_scale)
        self.skip = tuple(skip)

    def start(self, wire: Wire, x0: Tensor) -> tuple[Server, Any]:
        names = list(wire.problem.tensors)
        skip = {*self.skip, *(names[-2:] if "last" in self.skip else ())} - {"last"}
        if skip - set(names):
            raise InputError(f"skip names {sorted(skip - set(names))}; the model's tensors are {names}")
        raw = tuple(place for place, name in enumerate(names) if name in skip)
        codec = Ternary(self.clip_sigma, tuple(wire.problem.tensors.values()), raw)
        return {"x": x0, "m": torch.zeros_like(x0), "codec": codec}, {}

    def round(self, wire: Wire, server: Server, memory: Any) -> tuple[Server, Any]:
        codec: Ternary = server["codec"]

        def differentiate(one: Client, x: Tensor, _: Any) -> tuple[Tensor, Tensor]:
            g = (one.problem.n * one.weight) * one.gradient(x)
            return codec.scales(g), g

        def ternarise(one: Client, scale: Tensor, g: Tensor) -> tuple[Payload, Tensor]:
            return one.compress(codec, g, {"scale": scale} if self.shared_scale else {})[0], g

        scales, gradients = wire.each(differentiate, server["x"], steps=1)
        shared = wire.maximum(scales) if self.shared_scale else None
        messages, _ = wire.each(ternarise, shared, gradients)
        mean = self._mean(wire, codec, wire.gather(messages))
        m = self.momentum * server["m"] + mean
        return server | {"x": server["x"] - self.lr * m, "m": m}, memory

    def _mean(self, wire: Wire, codec: Ternary, messages: Payload) -> Tensor:
        """What every worker reads from the server's answer."""
        if not self.shared_scale:
            return wire.broadcast(messages.dense().mean(0))
        return wire.broadcast(TernarySum(codec, len(wire.clients)).add(messages)).dense()
