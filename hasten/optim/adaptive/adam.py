"""Adam and AdamW as rules of this family: PyTorch's updates, for what builds on them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, add_ratio_, ema_, ema_square_

if TYPE_CHECKING:
    from typing_extensions import Unpack


class Adam(RuleOptimizer):
    """Adam, as `torch.optim.Adam` takes its steps.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) g^2
        p <- p - lr / (1 - b1^t) * m / (sqrt(v / (1 - b2^t)) + eps)

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: added to the gradient as `weight_decay * p`.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: two state tensors per parameter. Source: Kingma, Ba (2014), arXiv 1412.6980.
    """

    buffers = ("exp_avg", "exp_avg_sq")
    coupled = True

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
        root = math.sqrt(1 - beta2**t)
        return {
            **self.decay(group, coupled=self.coupled),
            "step": group["lr"] * root / (1 - beta1**t),
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "eps": group["eps"] * root,
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
        ema_square_(exp_avg_sq, g, weight2)
        add_ratio_(p, -step, exp_avg, exp_avg_sq.sqrt().add_(eps))


class AdamW(Adam):
    """Adam with decoupled weight decay, as `torch.optim.AdamW` takes its steps.

        p <- p (1 - lr weight_decay), then as `Adam`

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the denominator.
        weight_decay: decoupled.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: two state tensors per parameter. Source: Loshchilov, Hutter (2017), arXiv 1711.05101.
    """

    coupled = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, **options)
