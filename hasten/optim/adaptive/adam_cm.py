"""Adam with critical momenta: a small memory of large past momenta that carries the step out of narrow basins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.layout import real, work_dtype
from hasten.optim.moments import Scalar, add_ratio_, ema_, ema_square_, maximum_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="adam-cm",
    family="optim",
    paper_id=13,
    title="Promoting Exploration in Memory-Augmented Adam using Critical Momenta",
    authors="Malviya et al.",
    year=2023,
    arxiv="2307.09638",
    summary="Adam that adds the mean of a few remembered momenta, those of the largest gradients, to its momentum.",
    cost="As Adam, and one tensor for each remembered momentum and one for their sum.",
    when="Losses with narrow basins that should be left for wide ones, and memory for several copies of the model.",
    kinds=KINDS,
    use="optimizer = hasten.optim.AdamCM(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)
MEMORIES = ("momentum", "gradient")
REFRESH = 128
"""Steps after which the running sum of the memory is made anew, so that rounding errors do not pile up."""


@optimizer(CARD)
class AdamCM(RuleOptimizer):
    """Adam on its momentum plus the mean of remembered momenta.

        m <- b1 m + (1 - b1) g;  a = m + mean(memory)
        remember m if the memory is not full, or in place of the item of least priority if |g| is larger than that
        v <- b2 v + (1 - b2) a^2;  p <- p (1 - lr weight_decay) - lr / (1 - b1^t) a / (sqrt(v / (1 - b2^t)) + eps)
        priorities <- decay * priorities

    The priority of a new item is the norm of the gradient. The first step only puts the gradient into the memory.
    With `memory="gradient"` it is gradients that are remembered, `a = g + mean(memory)`, and Adam runs on `a`; the
    first step is then Adam's.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the denominator.
        buffer: items to remember, at least 1.
        decay: of the priorities, in [0, 1]: how soon old items are replaced.
        memory: `momentum` or `gradient`.
        weight_decay: decoupled.
        amsgrad: divide by the largest `v` so far.
        synced: take the sum of the norms of all gradients of the group as the priority, not each tensor's own norm.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: `buffer + 3` tensors per parameter against Adam's 2. Source: Malviya et al. (2023), arXiv 2307.09638.
    """

    whole_tensor = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        buffer: int = 5,
        decay: float = 0.7,
        memory: str = "momentum",
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        synced: bool = True,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "buffer": buffer, "decay": decay, "memory": memory}
        more = {"weight_decay": weight_decay, "amsgrad": amsgrad, "synced": synced}
        super().__init__(params, {**hyper, **more}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("eps", group["eps"])
        check.integer("buffer", group["buffer"], 1)
        check.real("decay", group["decay"], 0.0, 1.0)
        check.one_of("memory", group["memory"], MEMORIES)

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        own = tuple(shape)
        kept = {"memory": (group["buffer"], *own), "total": own, "priority": (group["buffer"],)}
        largest = {"max_exp_avg_sq": own} if group["amsgrad"] else {}
        return {"exp_avg": own, "exp_avg_sq": own, **kept, **largest}

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        # An empty place has the least priority of all.
        state["priority"].fill_(-math.inf)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        root = math.sqrt(1 - beta2**t)
        return {
            **self.decay(group),
            "step": group["lr"] * root / (1 - beta1**t),
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "eps": group["eps"] * root,
            "fade": group["decay"],
            "share": 1 / max(min(t - 1, group["buffer"]), 1),
            "first": t == 1,
            "refresh": t % REFRESH == 0,
            "of_momenta": group["memory"] == "momentum",
            "norm": None,
        }

    def together(
        self, group: dict[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Any], t: int
    ) -> Mapping[str, float | Tensor]:
        if not group["synced"]:
            return {}
        everything = [real(param.grad) for param in group["params"] if param.grad is not None]
        norms = [torch.linalg.vector_norm(grad, dtype=work_dtype(grad.dtype)).double() for grad in everything]
        device = states[0]["priority"].device
        return {"norm": torch.stack([norm.to(device) for norm in norms]).sum()}

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        memory: Tensor,
        total: Tensor,
        priority: Tensor,
        max_exp_avg_sq: Tensor | None = None,
        *,
        step: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
        fade: Scalar,
        share: Scalar,
        first: bool,
        refresh: bool,
        of_momenta: bool,
        norm: Tensor | None,
    ) -> None:
        aggregate = g
        if of_momenta:
            aggregate = exp_avg if first else ema_(exp_avg, g, weight1)
        item = g if first else aggregate
        if not first:
            aggregate = aggregate + total * share
        own = torch.linalg.vector_norm(g.reshape(g.shape[0], -1), dim=1, keepdim=True) if norm is None else norm
        _remember(item, own.to(priority), memory, total, priority)
        priority.mul_(fade)
        if refresh:
            total.copy_(memory.sum(1))
        direction = aggregate if of_momenta else ema_(exp_avg, aggregate, weight1)
        ema_square_(exp_avg_sq, aggregate, weight2)
        largest = exp_avg_sq if max_exp_avg_sq is None else maximum_(max_exp_avg_sq, exp_avg_sq)
        add_ratio_(p, -step, direction, largest.sqrt().add_(eps))


def _remember(item: Tensor, norm: Tensor, memory: Tensor, total: Tensor, priority: Tensor) -> None:
    """Put the items (B, ...) in the places of least priority, where their norm is larger than that priority."""
    place = priority.argmin(1, keepdim=True)
    least = priority.gather(1, place)
    larger = norm > least
    members = torch.arange(item.shape[0], device=item.device)
    old = memory[members, place[:, 0]]
    new = torch.where(larger.view(-1, *[1] * (item.ndim - 1)), item, old)
    total.add_(new - old)
    memory[members, place[:, 0]] = new
    priority.scatter_(1, place, torch.where(larger, norm, least))
