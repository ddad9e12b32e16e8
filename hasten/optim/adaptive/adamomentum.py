"""AdaMomentum: Adam whose second moment is that of the momentum."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, add_ratio_, ema_, ema_square_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="adamomentum",
    family="optim",
    paper_id=129,
    title="Rethinking Adam: A Twofold Exponential Moving Average Approach",
    authors="Wang et al.",
    year=2021,
    arxiv="2106.11514",
    summary="Adam that divides by the size of its momentum instead of the gradient's, so that noise shortens no step.",
    cost="As Adam: two state tensors per parameter, one elementwise pass per step.",
    when="Gradients are noisy and the learning rate is small; at rates where Adam is at its best it gains nothing.",
    kinds=KINDS,
    use="optimizer = hasten.optim.AdaMomentum(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@optimizer(CARD)
class AdaMomentum(RuleOptimizer):
    """Adam with the second moment of `m`: steps keep their length where noise averages out of the momentum.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) m^2 + eps
        p <- p - lr / (1 - b1^t) * m / sqrt(v / (1 - b2^t))

    `eps` stays in `v`, as in AdaBelief, and is not added to the denominator again. Steps are longer than Adam's at the
    same `lr`, several times so under noise: start with a third of Adam's.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to `v` in every step, above 0.
        weight_decay: `p <- p (1 - lr weight_decay)`; without `weight_decouple`, `weight_decay * p` is added to the
            gradient.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as Adam. Source: Wang et al. (2021), arXiv 2106.11514.
    """

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        weight_decouple: bool = True,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps}
        super().__init__(params, {**hyper, "weight_decay": weight_decay, "weight_decouple": weight_decouple}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("eps", group["eps"])

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {
            **self.decay(group, coupled=not group["weight_decouple"]),
            "step": group["lr"] * math.sqrt(1 - beta2**t) / (1 - beta1**t),
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "eps": group["eps"],
        }

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
    ) -> None:
        ema_(exp_avg, g, weight1)
        ema_square_(exp_avg_sq, exp_avg, weight2, plus=eps)
        add_ratio_(p, -step, exp_avg, exp_avg_sq.sqrt())
