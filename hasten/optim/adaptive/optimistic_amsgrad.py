"""Optimistic AMSGrad: AMSGrad that steps ahead along a prediction of its next gradient."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.moments import Scalar, add_ratio_, axpy_, ema_, ema_square_, maximum_, mix

if TYPE_CHECKING:
    from typing_extensions import Unpack

CARD = Card(
    name="optimistic-amsgrad",
    family="optim",
    paper_id=240,
    title="An Optimistic Acceleration of AMSGrad for Nonconvex Optimization",
    authors="Wang, Li, Karimi, Li",
    year=2019,
    arxiv="1903.01435",
    summary="AMSGrad that steps ahead along a prediction of the next gradient, extrapolated from the last few.",
    cost="Five state tensors per parameter and one per gradient of the history; a Gram matrix of the history per step.",
    when="Gradients change smoothly from step to step (large batches), and in games, where AMSGrad circles.",
    kinds=KINDS,
    use="optimizer = hasten.optim.OptimisticAMSGrad(model.parameters(){hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)
PREDICTORS = ("rmpe", "last")


def rmpe_predict(history: Sequence[Tensor] | Tensor, reg: float = 1e-8) -> Tensor:
    """Where a sequence of tensors is heading: regularised minimal polynomial extrapolation.

    Of `r` tensors, the first `r - 1` are combined with weights that sum to 1 and make the same combination of their
    successive differences small. Exact for the limit of a linear recursion in at most `r - 2` dimensions.

    Args:
        history: tensors of one shape, the oldest first; fewer than three predict the last.
        reg: regularisation, relative to the norm of the Gram matrix of the differences.
    """
    check.nonnegative("reg", reg)
    if len(history) == 0:
        raise InputError("history is empty: there is nothing to predict from")
    stack = history if isinstance(history, Tensor) else torch.stack(list(history))
    weights = torch.tensor(_weights(_gram(stack), reg), dtype=stack.dtype, device=stack.device)
    return torch.tensordot(weights, stack, dims=1)


def _gram(stack: Tensor) -> Tensor:
    rows = stack.reshape(len(stack), -1)
    return (rows @ rows.T).detach().double().cpu()


def _weights(gram: Tensor, reg: float) -> list[float]:
    """Weights of the tensors, the oldest first, from their Gram matrix."""
    count = len(gram)
    last = [0.0] * (count - 1) + [1.0]
    if count < 3:
        return last
    left, right = gram[1:] - gram[:-1], slice(1, None)
    differences = left[:, right] - left[:, :-1]
    scale = float(torch.linalg.matrix_norm(differences, 2)) if bool(torch.isfinite(differences).all()) else 0.0
    if scale <= 0.0:
        return last
    system = differences / scale + reg * torch.eye(count - 1, dtype=gram.dtype)
    found, info = torch.linalg.solve_ex(system, torch.ones(count - 1, dtype=gram.dtype))
    total = float(found.sum())
    if int(info) or not bool(torch.isfinite(found).all()) or total == 0.0:
        return last
    return [*(found / total).tolist(), 0.0]


@optimizer(CARD)
class OptimisticAMSGrad(RuleOptimizer):
    """AMSGrad with a step ahead: the gradient is taken where the next step is expected to lead.

        m <- b1 m + (1 - b1) g;  v <- b2 v + (1 - b2) (g - h)^2;  w <- max(w, v);  z <- z - lr m / (sqrt(w) + eps)
        h <- prediction of the next gradient
        p = z - lr (b1 m + (1 - b1) h) / (sqrt(w) + eps)

    There is no bias correction. A good prediction makes both `v` and the regret small; `h = 0` gives AMSGrad on `z`.
    Not `z` is kept but the step ahead, so that a change of `lr` acts on it too and `lr = 0` stands still.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size.
        betas: decay of the first and second moment, in [0, 1).
        eps: added to the denominator.
        predictor: `rmpe` extrapolates the last gradients (see `rmpe_predict`) with one set of weights for all tensors
            that train together; `last` takes the gradient as it is.
        history: gradients that `rmpe` keeps, at least 3.
        reg: regularisation of `rmpe`.
        weight_decay: added to the gradient as `weight_decay * p`.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: `history + 5` tensors per parameter (5 with `last`) against AMSGrad's 3, and `history^2` dot products. Source:
    Wang, Li, Karimi, Li (2019), arXiv 1903.01435.
    """

    whole_tensor = True

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        predictor: str = "rmpe",
        history: int = 5,
        reg: float = 1e-8,
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, {**hyper, "predictor": predictor, "history": history, "reg": reg}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("eps", group["eps"])
        check.one_of("predictor", group["predictor"], PREDICTORS)
        check.integer("history", group["history"], 3)
        check.nonnegative("reg", group["reg"])

    def whole(self, group: Mapping[str, Any]) -> bool:
        return group["predictor"] == "rmpe"

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq", "prediction", "ahead")
        past = {"past": (group["history"], *shape)} if group["predictor"] == "rmpe" else {}
        return {**dict.fromkeys(names, tuple(shape)), **past}

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        given = {"lr": group["lr"], "weight1": 1 - beta1, "weight2": 1 - beta2, "eps": group["eps"]}
        return {**self.decay(group, coupled=True), **given}

    def together(
        self, group: dict[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Any], t: int
    ) -> Mapping[str, float | Tensor]:
        if group["predictor"] != "rmpe":
            return {}
        size = group["history"]
        for param, grad, state in zip(params, grads, states):
            newest = state["past"][(t - 1) % size].copy_(grad)
            if group["maximize"]:
                newest.neg_()
            if group["weight_decay"]:
                newest.add_(param, alpha=group["weight_decay"])
        order = [place % size for place in range(max(t - size, 0), t)]
        gram = sum(_gram(state["past"]) for state in states)
        assert isinstance(gram, Tensor)
        weights = dict(zip(order, _weights(gram[order][:, order], group["reg"])))
        return {f"c{place}": weights.get(place, 0.0) for place in range(size)}

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        exp_avg_sq: Tensor,
        max_exp_avg_sq: Tensor,
        prediction: Tensor,
        ahead: Tensor,
        past: Tensor | None = None,
        *,
        lr: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        eps: Scalar,
        **weights: Scalar,
    ) -> None:
        ema_(exp_avg, g, weight1)
        ema_square_(exp_avg_sq, g - prediction, weight2)
        denom = maximum_(max_exp_avg_sq, exp_avg_sq).sqrt().add_(eps)
        axpy_(p, lr, ahead)
        add_ratio_(p, -lr, exp_avg, denom)
        if past is None:
            prediction.copy_(g)
        else:
            prediction.zero_()
            for place, weight in enumerate(weights.values()):
                axpy_(prediction, weight, past[:, place])
        ahead.copy_(mix(exp_avg, prediction, weight1)).div_(denom)
        axpy_(p, -lr, ahead)
