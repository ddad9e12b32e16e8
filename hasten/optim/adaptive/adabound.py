"""AdaBound and AMSBound: Adam whose learning rates are drawn together, over the run, to the one of SGD."""

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
from hasten.optim.moments import Scalar, ema_, ema_square_, maximum_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="adabound",
    family="optim",
    paper_id=243,
    title="Adaptive Gradient Methods with Dynamic Bound of Learning Rate",
    authors="Luo et al.",
    year=2019,
    arxiv="1902.09843",
    summary="Adam at first, SGD with momentum in the end: the rate of each weight is clipped to bounds that close in.",
    cost="As Adam: two state tensors per parameter (three with amsbound), one elementwise pass per step.",
    when="Adam learns fast and SGD ends better; final_lr is then SGD's learning rate, which needs less tuning.",
    kinds=KINDS,
    use="optimizer = hasten.optim.AdaBound(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "final_lr": LogReal(1e-2, 1.0)},
)


@optimizer(CARD)
class AdaBound(RuleOptimizer):
    """Adam whose rate per weight is clipped to bounds that run together at `final_lr`.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        F = final_lr * lr / base_lr;  bounds F (1 - 1 / (gamma t + 1)) and F (1 + 1 / (gamma t))
        p <- p - clip(lr sqrt(1 - b2^t) / (1 - b1^t) / (sqrt(v) + eps), bounds) * m

    `base_lr` is the `lr` with which a group was made, so that a schedule moves the bounds too; a group made with
    `lr=0` has bounds that no schedule moves. After some `1 / gamma` steps this is SGD with momentum and step `F`.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size of the Adam that it begins as.
        betas: decay of the first and second moment, in [0, 1).
        final_lr: step size of the SGD that it ends as, above 0.
        gamma: how fast the bounds close in, in (0, 1).
        eps: added to the denominator.
        weight_decay: added to the gradient as `weight_decay * p`, or with `decouple` applied as
            `p <- p (1 - lr weight_decay)`.
        amsbound: divide by the largest `v` so far (AMSBound).
        decouple: see `weight_decay`.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as Adam. Source: Luo et al. (2019), arXiv 1902.09843.
    """

    buffers = ("exp_avg", "exp_avg_sq")
    kept = ("base_lr",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        final_lr: float = 0.1,
        gamma: float = 1e-3,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsbound: bool = False,
        decouple: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "final_lr": final_lr, "gamma": gamma, "eps": eps}
        decay = {"weight_decay": weight_decay, "decouple": decouple}
        super().__init__(params, {**hyper, **decay, "amsbound": amsbound}, **options)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        group.setdefault("base_lr", float(group["lr"]))

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("final_lr", group["final_lr"])
        check.real("gamma", group["gamma"], 0.0, 1.0, open_low=True, open_high=True)

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        names = (*self.buffers, "max_exp_avg_sq") if group["amsbound"] else self.buffers
        return dict.fromkeys(names, tuple(shape))

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        lr, base, closed = group["lr"], group["base_lr"], group["gamma"] * t
        final = group["final_lr"] * (lr / base if base else float(lr > 0))
        return {
            **self.decay(group, coupled=not group["decouple"]),
            "step": lr * math.sqrt(1 - beta2**t) / (1 - beta1**t),
            "lower": final * closed / (closed + 1),
            "upper": final * (1 + 1 / closed),
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
        max_exp_avg_sq: Tensor | None = None,
        *,
        step: Scalar,
        lower: Scalar,
        upper: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
    ) -> None:
        ema_(exp_avg, g, weight1)
        ema_square_(exp_avg_sq, g, weight2)
        largest = exp_avg_sq if max_exp_avg_sq is None else maximum_(max_exp_avg_sq, exp_avg_sq)
        rate = largest.sqrt().add_(eps).reciprocal_().mul_(step).clamp_(lower, upper)  # type: ignore[arg-type]
        p.addcmul_(rate, exp_avg, value=-1)
