"""Adam on blocks: weights share the second moment, from Adam itself to SGD normalised as a whole."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.layout import real, work_dtype
from hasten.optim.moments import Scalar, add_ratio_, ema_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="blockwise-adam",
    family="optim",
    paper_id=190,
    title="Adam Exploits l-infinity-geometry of Loss Landscape via Coordinate-wise Adaptivity",
    authors="Xie, Mohamadi, Li",
    year=2024,
    arxiv="2410.08198",
    summary="Adam with one second moment per block of weights: from Adam itself to SGD normalised as a whole.",
    cost="One tensor per parameter and one number per block: half of Adam's state if blocks are large.",
    when="Memory is short, or to see how much of Adam's speed comes from a step size for every single weight.",
    kinds=KINDS,
    use="optimizer = hasten.optim.BlockwiseAdam(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@optimizer(CARD)
class BlockwiseAdam(RuleOptimizer):
    """Adam whose weights share the second moment within blocks.

        m <- b1 m + (1 - b1) g;  v_block <- b2 v_block + (1 - b2) mean(g^2 over the block)
        p <- p (1 - lr weight_decay) - lr / (1 - b1^t) m / (sqrt(v_block / (1 - b2^t)) + eps)

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled.
        blocks: a number of consecutive entries (1 is Adam), `row` of the first axis, `tensor`, or `all`, the whole
            parameter group: normalised SGD with momentum.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: one tensor per parameter and one number per block. Source: Xie, Mohamadi, Li (2024), arXiv 2410.08198.
    """

    whole_tensor = True
    static = ("blocks",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        blocks: int | str = "tensor",
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "blocks": blocks}
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        if isinstance(group["blocks"], str):
            check.one_of("blocks", group["blocks"], ("row", "tensor", "all"))
        else:
            check.integer("blocks", group["blocks"], 1)

    def whole(self, group: Mapping[str, Any]) -> bool:
        return group["blocks"] != 1

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        own, blocks = tuple(shape), group["blocks"]
        if blocks == 1:
            return {"exp_avg": own, "exp_avg_sq": own}
        if blocks == "row":
            return {"exp_avg": own, "exp_avg_sq": (*own[:1], *[1] * (len(own) - 1))}
        if isinstance(blocks, int):
            return {"exp_avg": own, "exp_avg_sq": (-(-math.prod(own) // blocks),)}
        return {"exp_avg": own, "exp_avg_sq": (1,) * len(own)}

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        root = math.sqrt(1 - beta2**t)
        given = {"weight1": 1 - beta1, "weight2": 1 - beta2, "eps": group["eps"] * root, "blocks": group["blocks"]}
        return {**self.decay(group), **given, "step": group["lr"] * root / (1 - beta1**t), "square": None}

    def together(
        self, group: dict[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Any], t: int
    ) -> Mapping[str, float | Tensor]:
        if group["blocks"] != "all":
            return {}
        everything = [real(param.grad) for param in group["params"] if param.grad is not None]
        total = sum(float(grad.to(work_dtype(grad.dtype)).square().sum(dtype=torch.float64)) for grad in everything)
        return {"square": total / sum(grad.numel() for grad in everything)}

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        *,
        step: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
        blocks: int | str,
        square: Scalar | None,
    ) -> None:
        ema_(exp_avg, g, weight1)
        if square is not None:
            ema_(exp_avg_sq, torch.ones_like(exp_avg_sq) * square, weight2)
        else:
            ema_(exp_avg_sq, _means(g * g, exp_avg_sq, blocks), weight2)
        root = exp_avg_sq.sqrt().add_(eps)
        if isinstance(blocks, int) and blocks > 1:
            root = root.repeat_interleave(blocks, dim=1)[:, : p[0].numel()].view_as(p)
        add_ratio_(p, -step, exp_avg, root.expand_as(p))


def _means(x: Tensor, like: Tensor, blocks: int | str) -> Tensor:
    """Means over the blocks of each tensor of a stack (B, ...), shaped as `like`."""
    if blocks == 1:
        return x
    if isinstance(blocks, int):
        flat = x.reshape(x.shape[0], -1)
        missing = like.shape[1] * blocks - flat.shape[1]
        sums = F.pad(flat, (0, missing)).view(*like.shape, blocks).sum(2)
        sums[:, -1] *= blocks / (blocks - missing)
        return sums.div_(blocks)
    axes = tuple(range(2 if blocks == "row" else 1, x.ndim))
    return x.mean(axes, keepdim=True) if axes else x
