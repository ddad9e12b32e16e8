"""CAME: Adafactor with momentum, each entry of it trusted by how steady it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.memory.factored import factored_ema_, factored_rsqrt, factored_shapes, rms_clip_, squared
from hasten.optim.moments import Scalar, axpy_, ema_

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="came",
    family="optim",
    paper_id=24,
    title="CAME: Confidence-guided Adaptive Memory Efficient Optimization",
    authors="Luo et al.",
    year=2023,
    arxiv="2307.02047",
    summary="Adafactor with momentum, divided by how much the update strays from that momentum, also in factored form.",
    cost="One full tensor and 2 (n + m) numbers per n x m matrix, about half of Adam; four reductions per step.",
    when="Adam's quality is wanted at half its memory; use about a tenth of Adam's learning rate.",
    kinds=KINDS,
    use="optimizer = hasten.optim.CAME(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-5, 1e-2)},
)


@optimizer(CARD)
class CAME(RuleOptimizer):
    """Momentum of Adafactor's clipped update, normalised by its instability.

        R, C <- averages over rows and columns of g^2 + eps1;  u = g / sqrt(R C^T / mean(R))
        u <- u / max(1, rms(u) / clip_threshold);  m <- b1 m + (1 - b1) u
        Rs, Cs <- averages over rows and columns of (u - m)^2 + eps2
        p <- p (1 - lr weight_decay) - lr m / sqrt(Rs Cs^T / mean(Rs))

    Nothing is bias corrected: the first updates are clipped. Vectors and scalars keep a full second moment and take the
    step `lr m`; of tensors with more than two axes the last two are factored.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size, about a tenth of Adam's.
        betas: decay of the momentum, of the second moment and of the instability, in [0, 1).
        eps: floor of the squared gradient and of the instability.
        clip_threshold: largest root mean square of `u`.
        weight_decay: decoupled.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Raises:
        InputError: also for complex parameters, whose rows and columns have no such average.

    Cost: about half of Adam's state. Source: Luo et al. (2023), arXiv 2307.02047.
    """

    whole_tensor = True
    takes_complex = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        eps: tuple[float, float] = (1e-30, 1e-16),
        clip_threshold: float = 1.0,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "clip_threshold": clip_threshold, "weight_decay": weight_decay}
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("clip_threshold", group["clip_threshold"])
        check.positive("eps[0]", group["eps"][0])
        check.positive("eps[1]", group["eps"][1])

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        if len(shape) < 2:
            return {"exp_avg": tuple(shape), "exp_avg_sq": tuple(shape)}
        row, col = factored_shapes(shape)
        square = {"exp_avg_sq_row": row, "exp_avg_sq_col": col}
        return {"exp_avg": tuple(shape), **square, "exp_avg_res_row": row, "exp_avg_res_col": col}

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2, beta3 = group["betas"]
        floor, noise = group["eps"]
        return {
            **self.decay(group),
            "lr": group["lr"],
            "weight1": 1 - beta1,
            "weight2": 1 - beta2,
            "weight3": 1 - beta3,
            "floor": floor,
            "noise": noise,
            "threshold": group["clip_threshold"],
        }

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor | None = None,
        exp_avg_sq_row: Tensor | None = None,
        exp_avg_sq_col: Tensor | None = None,
        exp_avg_res_row: Tensor | None = None,
        exp_avg_res_col: Tensor | None = None,
        *,
        lr: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        weight3: Scalar,
        floor: Scalar,
        noise: Scalar,
        threshold: Scalar,
    ) -> None:
        square = squared(g).add_(floor)
        if exp_avg_sq is not None:
            u = rms_clip_(ema_(exp_avg_sq, square, weight2).rsqrt().mul_(g), threshold)
            axpy_(p, -lr, ema_(exp_avg, u, weight1))
            return
        assert exp_avg_sq_row is not None
        assert exp_avg_sq_col is not None
        assert exp_avg_res_row is not None
        assert exp_avg_res_col is not None
        factored_ema_(exp_avg_sq_row, exp_avg_sq_col, square, weight2)
        rows, cols = factored_rsqrt(exp_avg_sq_row, exp_avg_sq_col)
        # One temporary tensor serves throughout: memory that comes and goes costs more than the arithmetic.
        u = rms_clip_(square.copy_(g).mul_(rows).mul_(cols), threshold)
        ema_(exp_avg, u, weight1)
        u.sub_(exp_avg)
        factored_ema_(exp_avg_res_row, exp_avg_res_col, u.mul_(u).add_(noise), weight3)
        rows, cols = factored_rsqrt(exp_avg_res_row, exp_avg_res_col)
        axpy_(p, -lr, u.copy_(exp_avg).mul_(rows).mul_(cols))
