"""Polyak's step size for SGD with momentum: ALR-MAG for averaged directions, ALR-HB for heavy ball."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim import flat
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.layout import Batch
from hasten.optim.moments import axpy_
from hasten.optim.step_size.base import finite_loss

PAPER = {
    "family": "optim",
    "paper_id": 325,
    "title": "Generalized Polyak Step Size for First Order Optimization with Momentum",
    "authors": "Wang, Johansson, Zhang",
    "year": 2023,
    "arxiv": "2305.12939",
    "kinds": KINDS,
    "needs": ("loss",),
}
CLOSURE = (
    "def closure():\n"
    "    optimizer.zero_grad()\n"
    "    inputs, labels = loader[0]\n"
    "    loss = loss_fn(model(inputs), labels)\n"
    "    loss.backward()\n"
    "    return loss\n"
    "\n"
    "optimizer.step(closure)"
)
MAG_CARD = Card(
    name="alr-mag",
    **PAPER,
    summary="SGD along a sum of past gradients with Polyak's step size for that direction; needs the least loss.",
    cost="One tensor per parameter; three dot products and the value of the loss per step.",
    when="The least value of the loss is known, or near zero as in overparametrised networks.",
    use=f"optimizer = hasten.optim.ALRMAG(model.parameters(){{hyper}})\n{CLOSURE}",
    search_space={"lr_max": LogReal(1e-3, 10.0)},
)
HB_CARD = Card(
    name="alr-hb",
    **PAPER,
    summary="Heavy ball with Polyak's step size, corrected for the movement under way; needs the least loss.",
    cost="One tensor per parameter; two dot products and the value of the loss per step.",
    when="Ill-conditioned problems whose least value is known: it does not oscillate as heavy ball does.",
    use=f"optimizer = hasten.optim.ALRHB(model.parameters(){{hyper}})\n{CLOSURE}",
    search_space={"lr_max": LogReal(1e-3, 10.0)},
)

Work = Sequence[tuple[Batch, list[Tensor]]]


class _Polyak(RuleOptimizer):
    """What both have in common: the value of the loss, and one step size for all groups."""

    takes = "closure"

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None, loss: Any = None) -> Any:  # type: ignore[override]
        """Take one step and return the loss.

        Args:
            closure: computes gradients and returns the loss.
            loss: instead of it, the loss whose gradients are already in place.

        Raises:
            InputError: neither or both are given.
        """
        if (closure is None) == (loss is None):
            raise InputError(f"{type(self).__name__}.step needs the loss: give it either closure or loss=...")
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
            if loss is None:
                raise InputError(f"the closure given to {type(self).__name__}.step returned None; return the loss")
        self._loss = float(loss)
        super().step()
        return loss

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.fraction("momentum", group["momentum"])
        check.real("f_star", group["f_star"])
        check.positive("c", group["c"])
        if group["lr_max"] != math.inf:
            check.positive("lr_max", group["lr_max"])

    def advance(self, work: Work) -> None:
        moving = [(batch, grads) for batch, grads in work if float(batch.group["lr"]) > 0]
        if moving and finite_loss(self, self._loss):
            first = moving[0][0].group
            sign = -1.0 if first["maximize"] else 1.0
            gap = sign * (self._loss - first["f_star"])
            if gap < 0:
                warnings.warn(
                    f"the loss {self._loss:g} is beyond f_star={first['f_star']:g}, which should bound it: the step "
                    "size is 0; give a bound that holds",
                    RuntimeWarning,
                    stacklevel=3,
                )
            above, square = self.polyak(max(gap, 0.0), moving)
            self._eta = min(max(above, 0.0) / (first["c"] * square), first["lr_max"]) if square > 0 else 0.0
            super().advance(moving)

    def polyak(self, gap: float, work: Work) -> tuple[float, float]:
        """Numerator of the step size, and the squared norm that it is divided by."""
        raise NotImplementedError

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        eta = self._eta * group["lr"]
        keep = {"keep": 1 - group["weight_decay"] * eta} if group["weight_decay"] else {}
        return {**keep, "eta": eta, "momentum": group["momentum"]}


@optimizer(MAG_CARD)
class ALRMAG(_Polyak):
    """Momentum SGD with the generalised Polyak step size ALR-MAG; with mini-batches and `lr_max`, ALR-SMAG.

        d <- momentum * d + g
        eta = min((f - f_star) / (c |d|^2), lr_max)
        p <- p * (1 - weight_decay * eta) - lr * eta * d

    Norms are over all parameters. With `momentum` 0 it is Polyak's gradient descent. It hardly depends on the momentum
    and does not oscillate on ill-conditioned problems.

    Args:
        params: parameters, named parameters or groups of them; groups whose lr is 0 rest.
        momentum: in [0, 1).
        f_star: least value of the loss, or a lower bound (an upper one under `maximize`); of the first group for all.
        c: divides the step size; 1 for the paper's, larger is more cautious.
        lr_max: largest step size; finite for mini-batches.
        weight_decay: decoupled, see above.
        lr: multiplies the step size; leave it at 1, or let a schedule change it.
        options: `maximize`, `backend`, `on_nonfinite` (which also looks at the loss), see `Options`.

    A loss below `f_star` gives a step size of 0 and a warning.

    Cost: one tensor per parameter. Source: Wang, Johansson, Zhang (2023), arXiv 2305.12939.
    """

    buffers = ("direction",)

    def __init__(
        self,
        params: Any,
        momentum: float = 0.9,
        f_star: float = 0.0,
        c: float = 1.0,
        lr_max: float = math.inf,
        weight_decay: float = 0.0,
        lr: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "momentum": momentum, "f_star": f_star, "c": c, "lr_max": lr_max, "weight_decay": weight_decay, "lr": lr
        }  # fmt: skip
        super().__init__(params, hyper, **options)

    def polyak(self, gap: float, work: Work) -> tuple[float, float]:
        square = 0.0
        for batch, grads in work:
            past = [state["direction"] for state in batch.states]
            old, cross, new = flat.dots((past, past), (past, grads), (grads, grads))
            b = batch.group["momentum"] * (-1.0 if batch.group["maximize"] else 1.0)
            square += b * b * old + 2 * b * cross + new
        return gap, square

    @staticmethod
    def update(p: Tensor, g: Tensor, direction: Tensor, *, eta: Any, momentum: Any) -> None:
        direction.mul_(momentum).add_(g)
        axpy_(p, -eta, direction)


@optimizer(HB_CARD)
class ALRHB(_Polyak):
    """Heavy ball with the generalised Polyak step size ALR-HB; with mini-batches and `lr_max`, ALR-SHB.

        eta = min(max(0, factor * (f - f_star) + momentum * <g, x - x_before>) / (c |g|^2), lr_max)
        x_next = x - lr * eta * g + momentum * (x - x_before)

    Norms are over all parameters. `factor` 2 is exact on quadratics.

    Args:
        params, momentum, f_star, c, lr_max, lr, options: as in `ALRMAG`.
        factor: 1 or 2.
        weight_decay: decoupled, `p <- p * (1 - weight_decay * eta)`; it does not enter `x - x_before`.

    Cost: one tensor per parameter. Source: Wang, Johansson, Zhang (2023), arXiv 2305.12939.
    """

    buffers = ("moved",)

    def __init__(
        self,
        params: Any,
        momentum: float = 0.9,
        f_star: float = 0.0,
        c: float = 1.0,
        lr_max: float = math.inf,
        factor: int = 1,
        weight_decay: float = 0.0,
        lr: float = 1.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "momentum": momentum, "f_star": f_star, "c": c, "lr_max": lr_max, "factor": factor,
            "weight_decay": weight_decay, "lr": lr,
        }  # fmt: skip
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.one_of("factor", group["factor"], (1, 2))
        super().check_group(group)

    def polyak(self, gap: float, work: Work) -> tuple[float, float]:
        above, square = work[0][0].group["factor"] * gap, 0.0
        for batch, grads in work:
            along, new = flat.dots((grads, [state["moved"] for state in batch.states]), (grads, grads))
            above += batch.group["momentum"] * (-along if batch.group["maximize"] else along)
            square += new
        return above, square

    @staticmethod
    def update(p: Tensor, g: Tensor, moved: Tensor, *, eta: Any, momentum: Any) -> None:
        axpy_(moved.mul_(momentum), -eta, g)
        p.add_(moved)
