"""Ano and Anolog: the direction of the momentum, the size of the present gradient."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, add_ratio_, ema_

if TYPE_CHECKING:
    from typing_extensions import Unpack


def _card(name: str, cls: str, summary: str, when: str) -> Card:
    return Card(
        name=name,
        family="optim",
        paper_id=213,
        title="ANO: Faster is Better in Noisy Landscape",
        authors="Kegreisz",
        year=2025,
        arxiv="2508.18258",
        summary=summary,
        cost="As Adam: two state tensors per parameter, one elementwise pass per step.",
        when=when,
        kinds=KINDS,
        use=f"optimizer = hasten.optim.{cls}(model.parameters(){{hyper}})",
        search_space={"lr": LogReal(1e-4, 1e-1)},
    )


CARD = _card(
    "ano",
    "Ano",
    "Steps in the direction of the momentum's sign, as long as the present gradient says.",
    "Gradients are noisy or the task changes while learning, as in reinforcement learning.",
)
LOG_CARD = _card(
    "anolog",
    "Anolog",
    "Ano whose momentum grows longer during the run, so that it needs no beta1.",
    "As Ano, where the momentum cannot be tuned.",
)


@optimizer(CARD)
class Ano(RuleOptimizer):
    """The momentum gives the sign of each step, the present gradient its length.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) sign(g^2 - v) g^2
        p <- p (1 - lr weight_decay) - lr |g| sign(m) / sqrt(v / (1 - b2^t) + eps)

    `v` rises to large gradients as Adam's second moment does and falls with small ones only slowly. Noise that cancels
    in the momentum does not shorten the steps.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the momentum, in [0, 1), and of the second moment, in [0.5, 1), below which it may be negative.
        eps: added inside the root, above 0.
        weight_decay: decoupled.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as Adam. Source: Kegreisz (2025), arXiv 2508.18258.
    """

    buffers = ("exp_avg", "exp_avg_sq")

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.92, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.real("betas[1]", group["betas"][1], 0.5, 1.0, open_high=True)
        check.positive("eps", group["eps"])

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        correction = 1 - beta2**t
        return {
            **self.decay(group),
            "step": group["lr"] * math.sqrt(correction),
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "eps": group["eps"] * correction,
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
        square = g * g
        ema_(exp_avg_sq, (square - exp_avg_sq).sign_().mul_(square), weight2)
        add_ratio_(p, -step, exp_avg.sign().mul_(g.abs()), (exp_avg_sq + eps).sqrt_())


@optimizer(LOG_CARD)
class Anolog(Ano):
    """Ano with `b1 = 1 - 1 / log(t + 2)`, and without correction of the second moment.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) sign(g^2 - v) g^2
        p <- p (1 - lr weight_decay) - lr |g| sign(m) / sqrt(v + eps)

    Uncorrected, the first steps are up to `lr / sqrt(1 - b2)` long.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        beta2: decay of the second moment, in [0.5, 1).
        eps: added inside the root, above 0.
        weight_decay: decoupled.
        legacy: `b1 = 1 - 1 / log(max(2, t))`, negative at first, as in the published script.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: as Adam. Source: Kegreisz (2025), arXiv 2508.18258.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        beta2: float = 0.999,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        legacy: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "beta2": beta2, "eps": eps, "weight_decay": weight_decay, "legacy": legacy}
        RuleOptimizer.__init__(self, params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.real("beta2", group["beta2"], 0.5, 1.0, open_high=True)
        check.positive("eps", group["eps"])

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        return {
            **self.decay(group),
            "step": group["lr"],
            "weight1": 1 / math.log(max(2, t) if group["legacy"] else t + 2),
            "weight2": 1 - group["beta2"],
            "eps": group["eps"],
        }
