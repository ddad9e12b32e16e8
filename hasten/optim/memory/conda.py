"""Conda: Adam whose second moment is kept in the singular basis of the momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.memory.projector import SIDES, add_up_, down, on_right, principal, up
from hasten.optim.moments import Scalar, add_ratio_, ema_, ema_square_

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from hasten.optim.layout import Batch

CARD = Card(
    name="conda",
    family="optim",
    paper_id=9,
    title="Conda: Column-Normalized Adam for Training Large Language Models Faster",
    authors="Wang et al.",
    year=2025,
    arxiv="2509.24218",
    summary="Adam on matrices whose second moment is taken in the singular basis of the momentum, renewed rarely.",
    cost="Adam's state and one square matrix of the shorter side; two products with it per step, one SVD per gap.",
    when="Transformers and other networks made of matrices, where two more matrix products per step are cheap.",
    kinds=KINDS,
    use="optimizer = hasten.optim.Conda(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@optimizer(CARD)
class Conda(RuleOptimizer):
    """Adam in a rotated space: the momentum's singular vectors on one side are the axes.

        m <- b1 m + (1 - b1) g;  every `update_gap` steps, first at once: Q <- singular vectors of m
        v <- b2 v + (1 - b2) (g Q^T)^2;  p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) scale ((m Q^T) / (sqrt(v) + eps)) Q
        p <- p (1 - lr weight_decay)

    `v` stays as it is when Q changes. While Q is square, m is kept as `m Q^T` and rotated when Q changes, which is the
    same and saves one product per step. Tensors that are not matrices take Adam's step, with the same corrections.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size, that of Adam.
        betas: decay of the moments, in [0, 1).
        eps: added to the root of the second moment.
        weight_decay: decoupled, after the step.
        update_gap: steps from one SVD to the next.
        scale: of the steps of matrices.
        side: of matrices, which side is rotated: `std` the shorter one, `reverse_std` the longer one, `left`, `right`.
            Where the longer one is, only as many directions are kept as the shorter one has.
        only_2d: False: tensors of more axes count as matrices, first axis by all others.
        options: `maximize`, `backend` (matrices always run eagerly: products are most of the time), `on_nonfinite`,
            see `Options`.

    Raises:
        InputError: also for complex parameters.

    Cost: two products per step, together 4 n m min(n, m) flops; an SVD per gap. Source: Wang et al. (2025),
    arXiv 2509.24218.
    """

    whole_tensor = True
    takes_complex = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        update_gap: int = 2000,
        scale: float = 1.0,
        side: str = "std",
        only_2d: bool = True,
        **options: Unpack[Options],
    ) -> None:
        adam = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        own = {"update_gap": update_gap, "scale": scale, "side": side, "only_2d": only_2d}
        super().__init__(params, {**adam, **own}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.integer("update_gap", group["update_gap"], 1)
        check.positive("scale", group["scale"])
        check.one_of("side", group["side"], SIDES)

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        if len(shape) != 2 and (group["only_2d"] or len(shape) < 2):
            return {"exp_avg": tuple(shape), "exp_avg_sq": tuple(shape)}
        rows, cols = shape[0], math.prod(shape[1:])
        right, rank = on_right((rows, cols), group["side"]), min(rows, cols)
        inside = (rows, rank) if right else (rank, cols)
        basis = (rank, cols if right else rows)
        kept = inside if basis[0] == basis[1] else (rows, cols)
        return {"exp_avg": kept, "exp_avg_sq": inside, "basis": basis}

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        step = group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t)
        return {
            "step": step,
            "scale": group["scale"],
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "eps": group["eps"],
            "shrink": group["lr"] * group["weight_decay"] if group["weight_decay"] else None,
            "renew": (t - 1) % group["update_gap"] == 0,
            "side": group["side"],
        }

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        basis: Tensor | None = None,
        *,
        step: Scalar,
        scale: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
        shrink: Scalar | None,
        renew: bool,
        side: str,
    ) -> None:
        if basis is None:
            ema_(exp_avg, g, weight1)
            ema_square_(exp_avg_sq, g, weight2)
            add_ratio_(p, -step, exp_avg, exp_avg_sq.sqrt().add_(eps))
        else:
            g = g.flatten(2)
            right, square = on_right(g.shape, side), basis.shape[-1] == basis.shape[-2]
            if renew:
                m = up(exp_avg, basis, right) if square else exp_avg
                fresh = principal(torch.lerp(m, g, weight1), None, right)
                if square:
                    exp_avg.copy_(down(m, fresh, right))
                basis.copy_(fresh)
            inside = down(g, basis, right)
            m = ema_(exp_avg, inside if square else g, weight1)
            ema_square_(exp_avg_sq, inside, weight2)
            n = (m if square else down(m, basis, right)) / exp_avg_sq.sqrt().add_(eps)
            add_up_(p.view(g.shape), n, basis, right, -step * scale)
        if shrink is not None:
            p.mul_(1 - shrink)

    def _compiles(self, batch: Batch, t: int) -> bool:
        # Products of matrices are most of the time, and they are library calls either way.
        return "basis" not in batch.names and super()._compiles(batch, t)
