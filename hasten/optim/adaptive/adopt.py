"""ADOPT: Adam that normalises by the past only, and so converges with any beta2."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, axpy_, clip_, ema_, ema_square_, floor_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="adopt",
    family="optim",
    paper_id=184,
    title="ADOPT: Modified Adam Can Converge with Any beta2 with the Optimal Rate",
    authors="Taniguchi et al.",
    year=2024,
    arxiv="2411.02853",
    summary="Adam whose gradient never enters its own denominator and whose momentum is taken after normalising.",
    cost="As Adam: two state tensors per parameter, one elementwise pass per step.",
    when="Gradients are noisy or rare and large, or Adam needs a beta2 tuned to the problem.",
    kinds=KINDS,
    use="opt = hasten.optim.ADOPT(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@optimizer(CARD)
class ADOPT(RuleOptimizer):
    """Adam that normalises each gradient by the past second moment and takes momentum afterwards.

        step 1:  v = g^2, parameters unchanged
        later:   n = clip(g / max(sqrt(v), eps), +-clip);  m <- b1 m + (1 - b1) n;  p <- p - lr m
                 v <- b2 v + (1 - b2) g^2

    There is no bias correction. Converges at the rate O(1/sqrt(T)) for every `beta2`, where Adam may not.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: floor of the denominator.
        clip_lambda: bound of the normalised gradient at step `k` = 1, 2, ... (the first step, that only sets `v`, not
            counted): a power, `0.25` for `k**0.25`; a function of `k`; or None for none, as first published.
        weight_decay: added to the gradient as `weight_decay * p`, or with `decouple` applied as
            `p <- p (1 - lr weight_decay)`.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as Adam. Source: Taniguchi et al. (2024), arXiv 2411.02853.
    """

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.9999),
        eps: float = 1e-6,
        clip_lambda: float | Callable[[int], float] | None = 0.25,
        weight_decay: float = 0.0,
        decouple: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "decouple": decouple}
        super().__init__(params, {**hyper, "clip_lambda": clip_lambda}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("eps", group["eps"])
        if isinstance(group["clip_lambda"], (int, float)):
            check.nonnegative("clip_lambda", group["clip_lambda"])

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        clip = group["clip_lambda"]
        bound = clip(t - 1) if callable(clip) else None if clip is None else (t - 1) ** clip
        decay = {} if t == 1 and group["decouple"] else self.decay(group, coupled=not group["decouple"])
        return dict(
            decay, first=t == 1, lr=group["lr"], weight1=1 - beta1, weight2=1 - beta2, eps=group["eps"], bound=bound
        )

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        *,
        first: bool,
        lr: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
        bound: Scalar | None,
    ) -> None:
        if first:
            exp_avg_sq.copy_(g * g)
            return
        past = floor_(exp_avg_sq.sqrt(), eps)
        ema_square_(exp_avg_sq, g, weight2)
        n = torch.div(g, past, out=past)
        if bound is not None:
            clip_(n, bound)
        ema_(exp_avg, n, weight1)
        axpy_(p, -lr, exp_avg)
