"""diffGrad: Adam with friction where the gradient changes little from step to step; the friction for any optimizer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core.card import Card, LogReal, Range
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, hook, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, add_ratio_, ema_, ema_square_
from hasten.optim.wrapper import StepHook

if TYPE_CHECKING:
    from typing_extensions import Unpack

LR: dict[str, Range] = {"lr": LogReal(1e-4, 1e-1)}


def _card(name: str, summary: str, cost: str, when: str, use: str) -> Card:
    return Card(
        name=name,
        family="optim",
        paper_id=167,
        title="diffGrad: An Optimization Method for Convolutional Neural Networks",
        authors="Dubey et al.",
        year=2019,
        arxiv="1909.11015",
        summary=summary,
        cost=cost,
        when=when,
        kinds=KINDS,
        use=use,
        search_space=LR,
    )


CARD = _card(
    "diffgrad",
    "Adam with steps down to half as long where the gradient changes little, as it does near a minimum.",
    "One state tensor more than Adam: three per parameter, one elementwise pass per step.",
    "Adam overshoots or oscillates around minima; it is not meant to be faster.",
    "optimizer = hasten.optim.DiffGrad(model.parameters(){hyper})",
)
FRICTION_CARD = _card(
    "diffgrad-friction",
    "Halves the step of any optimizer where the gradient has not changed since the last step.",
    "Two tensors per parameter and a copy of the parameters during a step, a few elementwise passes.",
    "As diffGrad, on another optimizer than Adam.",
    "optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "friction = hasten.optim.DiffGradFriction(optimizer{hyper})",
)


@optimizer(CARD)
class DiffGrad(RuleOptimizer):
    """Adam whose step is multiplied by a friction between 1/2 and 1.

        xi = 1 / (1 + exp(-|g - g_before|));  m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        p <- p - lr sqrt(1 - b2^t) / (1 - b1^t) * xi m / (sqrt(v) + eps)

    `g_before` is 0 at first. `xi` depends on the scale of the loss: where all gradients are well below 1 it is 1/2
    throughout, and the rule is Adam with half the learning rate.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: added to the gradient as `weight_decay * p`, before anything else.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: one tensor more than Adam. Source: Dubey et al. (2019), arXiv 1909.11015.
    """

    buffers = ("exp_avg", "exp_avg_sq", "previous_grad")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, **options)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        return {
            **self.decay(group, coupled=True),
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
        previous_grad: Tensor,
        *,
        step: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
    ) -> None:
        ema_(exp_avg, g, weight1)
        ema_square_(exp_avg_sq, g, weight2)
        # The state of the last gradient serves as scratch space until it takes up this one.
        braked = previous_grad.sub_(g).abs_().sigmoid_().mul_(exp_avg)
        add_ratio_(p, -step, braked, exp_avg_sq.sqrt().add_(eps))
        previous_grad.copy_(g)


@hook(FRICTION_CARD)
class DiffGradFriction(StepHook):
    """Multiplies the step of any optimizer by diffGrad's friction; elementwise.

        xi = 1 / (1 + exp(-|g - g_before|));  p <- p_before + xi (p - p_before)

    `g` is the gradient as the optimizer sees it, after the filters in front of it; 0 before the first. Decoupled weight
    decay is part of the step and is braked too. On Adam with its bias correction this is `DiffGrad`.

    Args:
        optimizer: any `torch.optim.Optimizer` that takes gradients; None leaves it to `compose`.

    Raises:
        InputError: on attaching to `DiffGrad`, which has this friction, or to LBFGS.

    Cost: two tensors per parameter and a copy of the parameters during a step. Source: Dubey et al. (2019), arXiv
    1909.11015.
    """

    stage = "update"

    def __init__(self, optimizer: Optimizer | None = None) -> None:
        super().__init__(optimizer)

    def check(self, optimizer: Optimizer) -> None:
        if isinstance(optimizer, DiffGrad):
            raise InputError("DiffGrad has this friction already; put DiffGradFriction on another optimizer, e.g. Adam")
        if isinstance(optimizer, torch.optim.LBFGS):
            raise InputError("LBFGS learns the curvature from its own steps, which must not be shortened afterwards")

    def on_gradients(self, params: list[Tensor]) -> None:
        for param in params:
            grad: Tensor = param.grad  # type: ignore[assignment]
            state = self.state.setdefault(param, {})
            change = (grad - state["gradient"]).abs() if state else grad.abs()
            state["friction"] = torch.sigmoid(change)
            state["gradient"] = grad.clone()

    def on_update(self, params: list[Tensor], old: list[Tensor]) -> None:
        for param, before in zip(params, old):
            # A step that the optimizer left out, before any was taken, has no friction.
            if param in self.state:
                param.sub_(before).mul_(self.state[param]["friction"]).add_(before)
