"""CoRe: Adam's direction with a step size per weight that grows while the gradient keeps its sign."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, axpy_, ema_, ema_square_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="core",
    family="optim",
    paper_id=61,
    title="CoRe Optimizer: An All-in-One Solution for Machine Learning",
    authors="Eckhoff, Reiher",
    year=2024,
    arxiv="2307.15663",
    summary="Adam's direction times a step size per weight that grows while the gradient keeps its sign, as in Rprop.",
    cost="Three state tensors per parameter (four with a score history), one and a half times Adam's.",
    when="Full batches, where steps may grow to 1, or one optimizer for many tasks with only the largest step to set.",
    kinds=KINDS,
    use="optimizer = hasten.optim.CoRe(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-2), "step_sizes": Choice((1e-6, 1e-3), (1e-6, 1e-2), (1e-6, 1.0))},
)


@optimizer(CARD)
class CoRe(RuleOptimizer):
    """Continual resilient optimizer: Rprop's step sizes on Adam's direction.

        b1 = b1b + (b1a - b1b) exp(-((t - 1) / b1c)^2)
        h <- b2 h + (1 - b2) g^2;  m_old = m;  m <- b1 m + (1 - b1) g
        s <- s eta_plus where m m_old > 0, s eta_minus where m m_old < 0, kept within step_sizes; s = lr at first
        u = s m / (1 - b1^t) / (sqrt(h / (1 - b2^t)) + eps)
        p <- p (1 - weight_decay |u|) - u

    Adam (`etas=(1, 1)`, `b1a = b1b`) and Rprop (`b1a = b1b = 0`, `b2 < 0`) are special cases. After `score_history`
    steps the weights that have done most for the loss, by a running mean of `m u`, may be frozen; the choice is made
    anew in every step.

    Args:
        params: parameters, named parameters or groups of them.
        lr: first step size of every weight. Changing it later, as a schedule does, scales all steps in proportion; a
            group that is made with 0 stands still.
        step_sizes: smallest and largest step size: 1e-3 as the largest for mini-batches, 1 for full batches, 1e-2 in
            between.
        etas: factors by which a step size shrinks and grows.
        betas: `b1a` and `b1b`, first and last decay of the mean gradient, in [0, 1); `b1c`, steps between them; `b2`,
            decay of the second moment in [0, 1), or negative for the step `u = s sign(m)`.
        eps: added to the denominator.
        weight_decay: decay per length of step.
        score_history: steps over which the scores are averaged; 0 for none.
        frozen: fraction of each tensor that is frozen, in [0, 1); needs `score_history`.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: one and a half times Adam's state. Source: Eckhoff, Reiher (2024), arXiv 2307.15663.
    """

    kept = ("base_lr",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        step_sizes: tuple[float, float] = (1e-6, 1e-2),
        etas: tuple[float, float] = (0.7375, 1.2),
        betas: tuple[float, float, float, float] = (0.7375, 0.8125, 250.0, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.1,
        score_history: int = 0,
        frozen: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "step_sizes": step_sizes, "etas": etas, "betas": betas, "eps": eps}
        scores = {"weight_decay": weight_decay, "score_history": score_history, "frozen": frozen}
        super().__init__(params, {**hyper, **scores}, **options)

    def check_betas(self, betas: Sequence[float]) -> None:
        check.fraction("betas[0]", betas[0])
        check.fraction("betas[1]", betas[1])
        check.positive("betas[2]", betas[2])
        check.real("betas[3]", betas[3], high=1.0, open_high=True)

    def check_group(self, group: Mapping[str, Any]) -> None:
        low, high = group["step_sizes"]
        check.positive("step_sizes[0]", low)
        check.real("step_sizes[1]", high, low)
        check.real("etas[0]", group["etas"][0], 0.0, 1.0, open_low=True)
        check.real("etas[1]", group["etas"][1], 1.0)
        check.integer("score_history", group["score_history"], 0)
        check.fraction("frozen", group["frozen"])
        if group["frozen"] and not group["score_history"]:
            raise InputError(f"frozen={group['frozen']} needs scores to choose by; set score_history, e.g. to 100")
        assert isinstance(group, dict)
        group.setdefault("base_lr", float(group["lr"]))

    def whole(self, group: Mapping[str, Any]) -> bool:
        return bool(group["frozen"])

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        names = ["exp_avg", "step_size"]
        names += ["exp_avg_sq"] * (group["betas"][3] >= 0) + ["score"] * bool(group["frozen"])
        return dict.fromkeys(names, tuple(shape))

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        state["step_size"].fill_(group["base_lr"])

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        first, last, steps, beta2 = group["betas"]
        beta1 = last + (first - last) * math.exp(-(((t - 1) / steps) ** 2))
        base, history = group["base_lr"], group["score_history"]
        normalised = beta2 >= 0
        return {
            "scale": group["lr"] / base if base else 0.0,
            "low": group["step_sizes"][0],
            "high": group["step_sizes"][1],
            "shrink": group["etas"][0],
            "grow": group["etas"][1],
            "weight1": 1 - beta1,
            "weight2": 1 - beta2 if normalised else None,
            "correction1": 1 / (1 - beta1**t),
            "correction2": 1 / (1 - beta2**t) if normalised else None,
            "eps": group["eps"],
            "weight_decay": group["weight_decay"],
            "share": 1 / history if history else 0.0,
            "freeze": group["frozen"] if group["frozen"] and t > history else None,
        }

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        step_size: Tensor,
        exp_avg_sq: Tensor | None = None,
        score: Tensor | None = None,
        *,
        scale: Scalar,
        low: Scalar,
        high: Scalar,
        shrink: Scalar,
        grow: Scalar,
        weight1: Scalar,
        weight2: Scalar | None,
        correction1: Scalar,
        correction2: Scalar | None,
        eps: Scalar,
        weight_decay: Scalar,
        share: Scalar,
        freeze: Scalar | None,
    ) -> None:
        # The sign of the product, which itself would underflow for small gradients.
        agreement = exp_avg.sign()
        ema_(exp_avg, g, weight1)
        agreement.mul_(exp_avg)
        moving = None
        if score is not None and freeze is not None:
            moving = ~_highest(score, freeze)
            agreement.mul_(moving)
            score.mul_(1 - share)
        same = torch.ones_like(agreement)
        step_size.mul_(torch.where(agreement > 0, same * grow, torch.where(agreement < 0, same * shrink, same)))
        step_size.clamp_(low, high)  # type: ignore[arg-type]
        if exp_avg_sq is None or weight2 is None or correction2 is None:
            u = exp_avg.sign()
        else:
            ema_square_(exp_avg_sq, g, weight2)
            u = (exp_avg * correction1).div_((exp_avg_sq * correction2).sqrt_().add_(eps))
        u.mul_(step_size).mul_(scale)
        if moving is not None:
            u.mul_(moving)
        if score is not None:
            axpy_(score, share, exp_avg * u)
        p.sub_(u.abs().mul_(p).mul_(weight_decay)).sub_(u)


def _highest(stack: Tensor, fraction: Scalar) -> Tensor:
    """Which entries of each tensor of a stack (B, ...) are among this fraction of its largest."""
    flat = stack.flatten(1) if stack.ndim > 1 else stack.unsqueeze(1)
    rank = flat.argsort(dim=1, descending=True, stable=True).argsort(dim=1)
    return (rank + 1 <= fraction * flat.shape[1]).view_as(stack)
