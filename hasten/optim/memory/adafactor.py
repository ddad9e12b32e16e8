"""Adafactor: a second moment in n + m numbers per n x m matrix, and steps relative to the parameters' size."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, Parts, companion
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.memory.factored import factored_ema_, factored_rsqrt, factored_shapes, rms_clip_, squared
from hasten.optim.moments import Scalar, ema_, rms

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="adafactor",
    family="optim",
    paper_id=205,
    title="Adafactor: Adaptive Learning Rates with Sublinear Memory Cost",
    authors="Shazeer, Stern",
    year=2018,
    arxiv="1804.04235",
    summary="Adam without momentum, its second moment kept as row and column averages, its update clipped.",
    cost="An n x m matrix stores n + m numbers, instead of Adam's 2nm; two reductions per step.",
    when="Optimizer memory is what limits the model.",
    kinds=KINDS,
    use="optimizer = hasten.optim.Adafactor(model.parameters(), scale_parameter=False, relative_step=False{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


def _at_fixed_rate(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    options: dict[str, Any] = {"scale_parameter": False, "relative_step": False, **hyper}
    return Parts(Adafactor(model.parameters(), **options))


@companion(CARD, _at_fixed_rate)
class Adafactor(RuleOptimizer):
    """Adam's denominator from row and column averages of the squared gradient, at a fraction of its memory.

        b2_t = 1 - t^decay_rate;  R, C <- averages over rows and columns of g^2 + eps1;  V = R C^T / mean(R)
        u = g / sqrt(V);  u <- u / max(1, rms(u) / clip_threshold);  step = rho_t max(eps2, rms(p))
        p <- p (1 - weight_decay step) - step u

    with `rho_t = min(lr, 1 / sqrt(t))` under `relative_step` (`min(1e-6 t, 1 / sqrt(t))` under `warmup_init`), else
    `lr`, and without the factor `max(eps2, rms(p))` unless `scale_parameter`. Vectors and scalars keep a full second
    moment; of tensors with more than two axes the last two are factored.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size, or its cap under `relative_step`; None for 1e-2.
        eps: floor of the squared gradient, and of the parameters' size.
        clip_threshold: largest root mean square of an update, before the step size.
        decay_rate: exponent of the second moment's decay, negative.
        beta1: decay of a momentum of the scaled update, None for none.
        weight_decay: decoupled, relative to the step.
        scale_parameter, relative_step, warmup_init: see above.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Raises:
        InputError: also for complex parameters, whose rows and columns have no such average.

    Cost: n + m numbers of state for an n x m matrix. Source: Shazeer, Stern (2018), arXiv 1804.04235.
    """

    whole_tensor = True
    takes_complex = False

    def __init__(
        self,
        params: Any,
        lr: float | Tensor | None = None,
        eps: tuple[float, float] = (1e-30, 1e-3),
        clip_threshold: float = 1.0,
        decay_rate: float = -0.8,
        beta1: float | None = None,
        weight_decay: float = 0.0,
        scale_parameter: bool = True,
        relative_step: bool = True,
        warmup_init: bool = False,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": 1e-2 if lr is None else lr, "eps": eps, "clip_threshold": clip_threshold, "beta1": beta1}
        decay = {"decay_rate": decay_rate, "weight_decay": weight_decay}
        size = {"scale_parameter": scale_parameter, "relative_step": relative_step, "warmup_init": warmup_init}
        super().__init__(params, {**hyper, **decay, **size}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("clip_threshold", group["clip_threshold"])
        check.real("decay_rate", group["decay_rate"], high=0.0, open_high=True)
        check.positive("eps[0]", group["eps"][0])
        check.nonnegative("eps[1]", group["eps"][1])
        if group["beta1"] is not None:
            check.fraction("beta1", group["beta1"])

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {}
        if len(shape) >= 2:
            found["exp_avg_sq_row"], found["exp_avg_sq_col"] = factored_shapes(shape)
        else:
            found["exp_avg_sq"] = tuple(shape)
        return found if group["beta1"] is None else {**found, "exp_avg": tuple(shape)}

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        rho = group["lr"]
        if group["relative_step"]:
            rho = min(1e-6 * t if group["warmup_init"] else rho, t**-0.5)
        return {
            "rho": rho,
            "weight1": None if group["beta1"] is None else 1 - group["beta1"],
            "weight2": float(t ** group["decay_rate"]),
            "floor": group["eps"][0],
            "smallest": group["eps"][1] if group["scale_parameter"] else None,
            "threshold": group["clip_threshold"],
            "decay": group["weight_decay"] or None,
        }

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        *,
        exp_avg_sq_row: Tensor | None = None,
        exp_avg_sq_col: Tensor | None = None,
        exp_avg_sq: Tensor | None = None,
        exp_avg: Tensor | None = None,
        rho: Scalar,
        weight1: Scalar | None,
        weight2: Scalar,
        floor: Scalar,
        smallest: Scalar | None,
        threshold: Scalar,
        decay: Scalar | None,
    ) -> None:
        square = squared(g).add_(floor)
        if exp_avg_sq_row is not None and exp_avg_sq_col is not None:
            factored_ema_(exp_avg_sq_row, exp_avg_sq_col, square, weight2)
            rows, cols = factored_rsqrt(exp_avg_sq_row, exp_avg_sq_col)
            u = square.copy_(g).mul_(rows).mul_(cols)
        else:
            assert exp_avg_sq is not None
            u = ema_(exp_avg_sq, square, weight2).rsqrt().mul_(g)
        rms_clip_(u, threshold)
        step = rho if smallest is None else rms(p).clamp_(min=smallest) * rho  # type: ignore[arg-type]
        u.mul_(step)
        if exp_avg is not None and weight1 is not None:
            u = ema_(exp_avg, u, weight1)
        if decay is not None:
            p.mul_(1 - decay * step)
        p.sub_(u)
