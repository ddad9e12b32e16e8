"""AdamP and SGDP: steps without the part along the weights, where the loss does not depend on their scale."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import optimizer
from hasten.optim.adaptive.radial_free import PAPER, project
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, axpy, axpy_, ema_, ema_square_, mix

if TYPE_CHECKING:
    from typing_extensions import Unpack

ADAMP_CARD = Card(
    name="adamp",
    **PAPER,
    summary="Adam that leaves out the radial part of its step on weights whose scale does not matter.",
    cost="As Adam, and four dot products per tensor.",
    when="Networks with batch, layer or weight normalisation, where momentum makes weights grow and steps shrink.",
    use="optimizer = hasten.optim.AdamP(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)
SGDP_CARD = Card(
    name="sgdp",
    **PAPER,
    summary="SGD with momentum that leaves out the radial part of its step on weights whose scale does not matter.",
    cost="As SGD with momentum, and four dot products per tensor.",
    when="As AdamP, where SGD with momentum does well.",
    use="optimizer = hasten.optim.SGDP(model.parameters(), momentum=0.9{hyper})",
    search_space={"lr": LogReal(1e-3, 1.0)},
)


def _step(
    p: Tensor, g: Tensor, u: Tensor, lr: Scalar, decay: Scalar | None, delta: Scalar, wd_ratio: Scalar, eps: Scalar
) -> Tensor:
    """Project `u` on a stack (B, ...), decay the weights and take the step; returns what was left of `u`."""
    ratio: Tensor | float = 1.0
    if p.ndim > 2:
        u, ratio = project(p, g, u, delta, wd_ratio, eps)
    if decay is not None:
        p.mul_(1 - decay * ratio)
    axpy_(p, -lr, u)
    return u


class _Projected(RuleOptimizer):
    """Checks that AdamP and SGDP share."""

    radial_free = True
    whole_tensor = True
    takes_complex = False

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.nonnegative("delta", group["delta"])
        check.real("wd_ratio", group["wd_ratio"], 0.0, 1.0)
        check.positive("eps", group["eps"])

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        decay = group["lr"] * group["weight_decay"] if group["weight_decay"] else None
        given = {name: group[name] for name in ("lr", "delta", "wd_ratio", "eps", "nesterov")}
        return {**given, "decay": decay}


@optimizer(ADAMP_CARD)
class AdamP(_Projected):
    """Adam whose step has no part along weights whose scale does not matter to the loss.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2;  u = m / (sqrt(v / (1 - b2^t)) + eps)
        if the gradient is at right angles to p:  u <- u - <u, p> p / |p|^2,  weight decay times wd_ratio
        p <- p (1 - lr weight_decay) - lr / (1 - b1^t) u

    With momentum, weights in front of a normalisation layer grow, and with them their effective step size falls faster
    than it should. The test and the two views are those of `radial_projection`; vectors and scalars follow Adam.

    Args:
        params: parameters, named parameters or groups of them; real ones.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the denominator, and to the norm of the weights.
        weight_decay: decoupled, as in AdamW.
        delta: how far from a right angle passes the test, in units of `1 / sqrt(length)`.
        wd_ratio: weight decay of tensors that pass, in [0, 1] of that of the others.
        nesterov: put `b1 m + (1 - b1) g` in place of `m`.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as Adam, and four dot products per tensor. Source: Heo et al. (2021), arXiv 2006.08217.
    """

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**hyper, "delta": delta, "wd_ratio": wd_ratio, "nesterov": nesterov}, **options)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        corrected = {"lr": group["lr"] / (1 - beta1**t), "root": 1 / math.sqrt(1 - beta2**t)}
        return {**super().scalars(group, t), **corrected, "weight1": 1 - beta1, "weight2": 1 - beta2}

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        *,
        lr: Scalar,
        root: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
        decay: Scalar | None,
        delta: Scalar,
        wd_ratio: Scalar,
        nesterov: bool,
    ) -> None:
        ema_(exp_avg, g, weight1)
        ema_square_(exp_avg_sq, g, weight2)
        u = mix(exp_avg, g, weight1) if nesterov else exp_avg
        _step(p, g, u / exp_avg_sq.sqrt().mul_(root).add_(eps), lr, decay, delta, wd_ratio, eps)


@optimizer(SGDP_CARD)
class SGDP(_Projected):
    """SGD with momentum whose step has no part along weights whose scale does not matter to the loss.

        m <- momentum m + (1 - dampening) g;  u = m
        if the gradient is at right angles to p:  u <- u - <u, p> p / |p|^2,  weight decay times wd_ratio
        p <- p (1 - lr weight_decay / (1 - momentum)) - lr u

    As in the authors' code the projected `u` is kept as the momentum, and dampening holds in the first step too.

    Args:
        params: parameters, named parameters or groups of them; real ones.
        lr: step size.
        momentum: in [0, 1).
        dampening: of the gradient that enters the momentum, in [0, 1].
        weight_decay: decoupled.
        delta, wd_ratio, eps: as in `AdamP`.
        nesterov: put `g + momentum m` in place of `m`; the momentum then keeps its radial part.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as SGD with momentum, and four dot products per tensor. Source: Heo et al. (2021), arXiv 2006.08217.
    """

    buffers = ("momentum",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-2,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        delta: float = 0.1,
        wd_ratio: float = 0.1,
        nesterov: bool = False,
        eps: float = 1e-8,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "momentum": momentum, "dampening": dampening, "weight_decay": weight_decay, "eps": eps}
        super().__init__(params, {**hyper, "delta": delta, "wd_ratio": wd_ratio, "nesterov": nesterov}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        check.fraction("momentum", group["momentum"])
        check.real("dampening", group["dampening"], 0.0, 1.0)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        given = super().scalars(group, t)
        if given["decay"] is not None:
            given["decay"] /= 1 - group["momentum"]
        return {**given, "beta": group["momentum"], "weight": 1 - group["dampening"]}

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        momentum: Tensor,
        *,
        lr: Scalar,
        beta: Scalar,
        weight: Scalar,
        eps: Scalar,
        decay: Scalar | None,
        delta: Scalar,
        wd_ratio: Scalar,
        nesterov: bool,
    ) -> None:
        axpy_(momentum.mul_(beta), weight, g)
        if nesterov:
            _step(p, g, axpy(g, beta, momentum), lr, decay, delta, wd_ratio, eps)
        else:
            momentum.copy_(_step(p, g, momentum, lr, decay, delta, wd_ratio, eps))
