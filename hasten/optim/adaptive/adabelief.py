"""AdaBelief: Adam whose second moment is that of the gradient's deviation from its own average."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, add_ratio_, axpy_, ema_, ema_square_, maximum_, rectification

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="adabelief",
    family="optim",
    paper_id=11,
    title="AdaBelief Optimizer: Adapting Stepsizes by the Belief in Observed Gradients",
    authors="Zhuang et al.",
    year=2020,
    arxiv="2010.07468",
    summary="Adam that divides by how far the gradient strays from its average, not by its size.",
    cost="As Adam: two state tensors per parameter (three with amsgrad), one elementwise pass per step.",
    when="Gradients point steadily one way (valleys, GANs): steps grow where Adam's stay at lr.",
    kinds=KINDS,
    use="optimizer = hasten.optim.AdaBelief(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@optimizer(CARD)
class AdaBelief(RuleOptimizer):
    """Adam with the second moment of `g - m`: large steps where the gradient does as expected.

        m <- b1 m + (1 - b1) g;  s <- b2 s + (1 - b2) (g - m)^2 + eps
        p <- p - lr / (1 - b1^t) * m / (sqrt(s / (1 - b2^t)) + eps)

    `eps` stays in `s`, as in the authors' code. With `rectify`, steps are scaled by the variance correction of RAdam,
    without correction of `s`; as long as its degrees of freedom are below 5 the step is `lr / (1 - b1^t) * m`.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to `s` in every step, and to the denominator.
        weight_decay: `p <- p (1 - lr weight_decay)`; `p (1 - weight_decay)` with `fixed_decay`; without
            `weight_decouple`, `weight_decay * p` is added to the gradient.
        rectify: whether to rectify.
        amsgrad: divide by the largest `s` so far.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as Adam. Source: Zhuang et al. (2020), arXiv 2010.07468.
    """

    buffers = ("exp_avg", "exp_avg_var")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-16,
        weight_decay: float = 0.0,
        weight_decouple: bool = True,
        fixed_decay: bool = False,
        rectify: bool = True,
        amsgrad: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "rectify": rectify, "amsgrad": amsgrad}
        decay = {"weight_decay": weight_decay, "weight_decouple": weight_decouple, "fixed_decay": fixed_decay}
        super().__init__(params, {**hyper, **decay}, **options)

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        names = (*self.buffers, "max_exp_avg_var") if group["amsgrad"] else self.buffers
        return dict.fromkeys(names, tuple(shape))

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        decay = self.decay(group, coupled=not group["weight_decouple"])
        if "keep" in decay and group["fixed_decay"]:
            decay["keep"] = 1.0 - group["weight_decay"]
        step, root = group["lr"] / (1 - beta1**t), math.sqrt(1 - beta2**t)
        normalise = True
        if group["rectify"]:
            factor = rectification(beta2, t)
            normalise, step, root = factor is not None, step * (factor or 1.0), 1.0
        return dict(
            decay, step=step, root=root, weight1=1 - beta1, weight2=1 - beta2, eps=group["eps"], normalise=normalise
        )

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_var: Tensor,
        max_exp_avg_var: Tensor | None = None,
        *,
        step: Scalar,
        root: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
        normalise: bool,
    ) -> None:
        ema_(exp_avg, g, weight1)
        ema_square_(exp_avg_var, g - exp_avg, weight2, plus=eps)
        var = exp_avg_var if max_exp_avg_var is None else maximum_(max_exp_avg_var, exp_avg_var)
        if normalise:
            add_ratio_(p, -step * root, exp_avg, var.sqrt().add_(eps * root))
        else:
            axpy_(p, -step, exp_avg)
