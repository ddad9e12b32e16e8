"""AdEMAMix: Adam with a second, very slow average of the gradient beside the usual one."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal, Real
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, add_ratio_, axpy, ema_, ema_square_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="ademamix",
    family="optim",
    paper_id=255,
    title="The AdEMAMix Optimizer: Better, Faster, Older",
    authors="Pagliardini, Ablin, Grangier",
    year=2024,
    arxiv="2409.03137",
    summary="Adam whose step mixes in a very slow average of the gradient, so that old gradients still count.",
    cost="One state tensor more than Adam: three per parameter, one elementwise pass per step.",
    when="Long runs in which old gradients stay relevant, such as language-model pre-training.",
    kinds=KINDS,
    use="optimizer = hasten.optim.AdEMAMix(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "alpha": Real(1.0, 8.0)},
)


@optimizer(CARD)
class AdEMAMix(RuleOptimizer):
    """Adam's numerator plus `alpha` times a slow average of the gradient.

        m1 <- b1 m1 + (1 - b1) g;  m2 <- b3_t m2 + (1 - b3_t) g;  v <- b2 v + (1 - b2) g^2
        p <- p - lr ((m1 / (1 - b1^t) + alpha_t m2) / (sqrt(v / (1 - b2^t)) + eps) + weight_decay p)

    `m2` is not bias corrected. Over `alpha_warmup` steps `alpha_t` rises linearly from 0; over `beta3_warmup` steps
    `b3_t` rises from b1 so that its half-life grows linearly. Both should be about the length of the run.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the fast average (0 takes the gradient itself), the second moment and the slow average.
        alpha: weight of the slow average, 2 to 10.
        alpha_warmup, beta3_warmup: lengths of the warm-ups in steps, None for none.
        eps: added to the denominator.
        weight_decay: decoupled.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: one tensor more than Adam. Source: Pagliardini, Ablin, Grangier (2024), arXiv 2409.03137.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 2.0,
        alpha_warmup: int | None = None,
        beta3_warmup: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "alpha": alpha, "eps": eps, "weight_decay": weight_decay}
        warmup = {"alpha_warmup": alpha_warmup, "beta3_warmup": beta3_warmup}
        super().__init__(params, {**hyper, **warmup}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.nonnegative("alpha", group["alpha"])
        for name in ("alpha_warmup", "beta3_warmup"):
            if group[name] is not None:
                check.integer(name, group[name], 1)

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        fast = ("exp_avg",) if group["betas"][0] > 0 else ()
        return dict.fromkeys(("exp_avg_slow", "exp_avg_sq", *fast), tuple(shape))

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2, beta3 = group["betas"]
        alpha, ramp = group["alpha"], group["alpha_warmup"]
        root = math.sqrt(1 - beta2**t)
        return {
            **self.decay(group),
            "step": root * group["lr"] / (1 - beta1**t),
            "slow": (1 - beta1**t) * (alpha if ramp is None else alpha * min(t / ramp, 1.0)),
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "weight3": 1 - _slow_decay(beta1, beta3, t, group["beta3_warmup"]),
            "eps": group["eps"] * root,
        }

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg_slow: Tensor,
        exp_avg_sq: Tensor,
        exp_avg: Tensor | None = None,
        *,
        step: Scalar,
        slow: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        weight3: Scalar,
        eps: Scalar,
    ) -> None:
        ema_(exp_avg_slow, g, weight3)
        ema_square_(exp_avg_sq, g, weight2)
        mixed = axpy(g if exp_avg is None else ema_(exp_avg, g, weight1), slow, exp_avg_slow)
        add_ratio_(p, -step, mixed, exp_avg_sq.sqrt().add_(eps))


def _slow_decay(start: float, end: float, t: int, warmup: int | None) -> float:
    if warmup is None or t >= warmup:
        return end

    def half_life(beta: float) -> float:
        return math.log(0.5) / math.log(beta + 1e-8) - 1

    mixed = half_life(start) + t / warmup * (half_life(end) - half_life(start))
    return 0.5 ** (1 / (mixed + 1))
