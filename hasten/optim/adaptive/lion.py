"""Lion, and Lion-K: the same momentum with any convex potential in place of the l1 norm."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal, Range, Real
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.layout import real
from hasten.optim.moments import Scalar, axpy_, clip_, ema_, mix

if TYPE_CHECKING:
    from typing_extensions import Unpack

ELEMENTWISE = ("l1", "huber", "softsign", "entropy")
WHOLE = ("l2", "lp", "group_l2")

Kappa = str | Callable[[Tensor], Tensor]


def _card(name: str, cls: str, summary: str, when: str, search: Mapping[str, Range]) -> Card:
    return Card(
        name=name,
        family="optim",
        paper_id=357,
        title="Lion Secretly Solves Constrained Optimization: As Lyapunov Predicts",
        authors="Chen, Liu, Liang, Liu",
        year=2023,
        arxiv="2310.05898",
        summary=summary,
        cost="One state tensor per parameter, half of Adam; one elementwise pass per step.",
        when=when,
        kinds=KINDS,
        use=f"optimizer = hasten.optim.{cls}(model.parameters(){{hyper}})",
        search_space=search,
    )


class LionK(RuleOptimizer):
    """Sign-like momentum steps that solve a constrained or composite problem.

        c = b1 m + (1 - b1) g;  p <- p (1 - lr weight_decay) - lr dK(c);  m <- b2 m + (1 - b2) g

    converges to a minimum of `f(x) + K*(-weight_decay x) / weight_decay`. For `l1` this is `f` on the box
    `max|x| <= 1 / weight_decay`, for `l2` on the ball of that radius per tensor; a start outside comes in by the factor
    `1 - lr weight_decay` per step. Without weight decay there is no constraint.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size, a third to a tenth of Adam's.
        betas: decay inside the step and of the momentum, in [0, 1).
        weight_decay: decoupled; one over the size of the constraint.
        kappa: which `dK(c)`: `l1` sign(c); `l2` c / |c| per tensor; `lp` sign(c) (|c| / |c|_p)^(p-1) per tensor;
            `group_l2` c / |c| per row; `huber` clip(c / eps, -1, 1); `softsign` c / sqrt(c^2 + eps^2); `entropy`
            tanh(c / eps); or a function of a stack (B, ...) of tensors that gives the subgradient of each.
        eps: width of the smooth part of `huber`, `softsign` and `entropy`.
        order: p of `lp`, above 1.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: one state tensor. Source: Chen, Liu, Liang, Liu (2023), arXiv 2310.05898.
    """

    buffers = ("exp_avg",)

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        kappa: Kappa = "l1",
        eps: float = 1e-8,
        order: float = 4.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "kappa": kappa, "eps": eps, "order": order}
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        if not callable(group["kappa"]):
            check.one_of("kappa", group["kappa"], (*ELEMENTWISE, *WHOLE))
        check.positive("eps", group["eps"])
        check.real("order", group["order"], 1.0, open_low=True)

    def whole(self, group: Mapping[str, Any]) -> bool:
        return group["kappa"] not in ELEMENTWISE

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        beta1, beta2 = group["betas"]
        own = {"kappa": group["kappa"], "eps": group["eps"], "order": group["order"]}
        return {**self.decay(group), "lr": group["lr"], "weight1": 1 - beta1, "weight2": 1 - beta2, **own}

    @staticmethod
    def update(
        p: Tensor,
        g: Tensor,
        exp_avg: Tensor,
        *,
        lr: Scalar,
        weight1: Scalar,
        weight2: Scalar,
        kappa: Kappa,
        eps: Scalar,
        order: Scalar,
    ) -> None:
        c = mix(exp_avg, g, weight1)
        if callable(kappa):
            c = kappa(c)
        else:
            c = c.sign_() if kappa == "l1" else subgradient(c, kappa, eps, order)
        axpy_(p, -lr, c)
        ema_(exp_avg, g, weight2)


class Lion(LionK):
    """Lion: `c = b1 m + (1 - b1) g;  p <- p (1 - lr weight_decay) - lr sign(c);  m <- b2 m + (1 - b2) g`.

    With weight decay it minimises the loss over the box `max|x| <= 1 / weight_decay`.

    Args:
        params: parameters, named parameters or groups of them.
        lr: step size, a third to a tenth of Adam's.
        betas: decay inside the step and of the momentum, in [0, 1).
        weight_decay: decoupled; three to ten times Adam's.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: one state tensor. Source: Chen, Liu, Liang, Liu (2023), arXiv 2310.05898.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, lr, betas, weight_decay, **options)


def subgradient(c: Tensor, kappa: str, eps: Any, order: Any = 4.0) -> Tensor:
    """`dK(c)` of each tensor of a stack (B, ...); zero at zero. See `LionK` for the names."""
    if kappa == "l1":
        return c.sign()
    if kappa == "huber":
        return clip_(c / eps, 1.0)
    if kappa == "softsign":
        return c / (c * c + eps * eps).sqrt()
    if kappa == "entropy":
        return (c / eps).tanh()
    axes = tuple(range(2 if kappa == "group_l2" else 1, c.ndim))
    if kappa == "lp":
        largest = _positive(c.abs().amax(axes, keepdim=True) if axes else c.abs())
        scaled = (c / largest).abs()
        norm = (scaled**order).sum(axes, keepdim=True) ** (1 / order) if axes else scaled
        return c.sign() * (scaled / _positive(norm)) ** (order - 1)
    norm = torch.linalg.vector_norm(c, dim=axes, keepdim=True) if axes else c.abs()
    return c / _positive(norm)


def lion_lyapunov(optimizer: LionK, loss: float) -> float:
    """The function that Lion-K's steps decrease once the weights are inside the constraint; infinite outside.

        H = f(x) + lr b1 / (lr weight_decay (1 - b1) + 1 - b2) * (K(m) + weight_decay <m, x>)

    Args:
        optimizer: after at least one step, with `kappa` `l1` or `l2` and positive weight decay in every group.
        loss: `f` at the present parameters.

    Raises:
        InputError: another `kappa`, or no weight decay.
    """
    total = loss
    for group in optimizer.param_groups:
        kappa = check.one_of("kappa", group["kappa"], ("l1", "l2"))
        lr, decay = float(group["lr"]), float(check.positive("weight_decay", group["weight_decay"]))
        beta1, beta2 = group["betas"]
        weight = lr * beta1 / (lr * decay * (1 - beta1) + 1 - beta2)
        for param in group["params"]:
            momentum = optimizer.state[param].get("exp_avg")
            if momentum is None:
                continue
            x, m = real(param.detach()).double(), momentum.double()
            if float(torch.linalg.vector_norm(x, float("inf") if kappa == "l1" else 2.0)) * decay > 1 + 1e-12:
                return math.inf
            potential = torch.linalg.vector_norm(m, 1.0 if kappa == "l1" else 2.0)
            total += weight * float(potential + decay * (m * x).sum())
    return total


def _positive(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, 1.0)


optimizer(
    _card(
        "lion",
        "Lion",
        "The sign of an interpolated momentum, with weight decay that confines the weights to a box.",
        "Memory is short, batches are large, or a bound on the weights' size is wanted.",
        {"lr": LogReal(1e-5, 1e-2), "weight_decay": Real(0.0, 1.0)},
    )
)(Lion)
optimizer(
    _card(
        "lion-k",
        "LionK",
        "Lion with another potential than the l1 norm: its weight decay confines to that norm's ball.",
        "Weights should stay in a ball, or a smooth sign is wanted.",
        {"lr": LogReal(1e-4, 1.0), "kappa": Choice("l2", "lp", "group_l2")},
    )
)(LionK)
