"""AMSGrad: Adam whose denominator never falls; and AdamNC, whose second moment is the mean over all steps."""

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
from hasten.optim.moments import Scalar, add_ratio_, ema_, ema_square_, maximum_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="amsgrad",
    family="optim",
    paper_id=194,
    title="On the Convergence of Adam and Beyond",
    authors="Reddi, Kale, Kumar",
    year=2018,
    arxiv="1904.09237",
    summary="Adam that divides by the largest second moment so far, so that rare large gradients are not forgotten.",
    cost="One state tensor more than Adam: three per parameter (two for AdamNC), one elementwise pass per step.",
    when="Informative gradients are rare and large, or Adam needs a beta2 tuned to the problem.",
    kinds=KINDS,
    use="optimizer = hasten.optim.AMSGrad(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@optimizer(CARD)
class AMSGrad(RuleOptimizer):
    """Adam with a second moment that can only grow.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  w <- max(w, v)
        p <- p - lr / (1 - b1^t) * m / (sqrt(w / (1 - b2^t)) + eps)

    On convex problems with `lr` falling as 1/sqrt(t) its average regret goes to 0, where Adam's may stay constant. With
    `b2_schedule="1-1/t"` it is the paper's AdamNC: `v` is the mean of the squares so far, and there is no maximum.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: added to the gradient as `weight_decay * p`.
        bias_correction: divide the moments by `1 - b^t`; the paper does not.
        b2_schedule: None for a constant `b2`, or `1-1/t`.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: one tensor more than Adam, none more with `b2_schedule`. Source: Reddi, Kale, Kumar (2018), arXiv 1904.09237.
    """

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        bias_correction: bool = True,
        b2_schedule: str | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**hyper, "bias_correction": bias_correction, "b2_schedule": b2_schedule}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.one_of("b2_schedule", group["b2_schedule"], (None, "1-1/t"))

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        names = self.buffers if group["b2_schedule"] else (*self.buffers, "max_exp_avg_sq")
        return dict.fromkeys(names, tuple(shape))

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        mean = group["b2_schedule"] is not None
        first, root = 1.0, 1.0
        if group["bias_correction"]:
            first = 1 - beta1**t
            root = 1.0 if mean else math.sqrt(1 - beta2**t)
        return {
            **self.decay(group, coupled=True),
            "step": group["lr"] * root / first,
            "weight1": 1 - beta1,
            "weight2": 1 / t if mean else 1 - beta2,
            "eps": group["eps"] * root,
        }

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        max_exp_avg_sq: Tensor | None = None,
        *,
        step: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
    ) -> None:
        ema_(exp_avg, g, weight1)
        ema_square_(exp_avg_sq, g, weight2)
        largest = exp_avg_sq if max_exp_avg_sq is None else maximum_(max_exp_avg_sq, exp_avg_sq)
        add_ratio_(p, -step, exp_avg, largest.sqrt().add_(eps))
