"""OASIS: steps scaled by an estimate of the Hessian's diagonal, with a step size that adapts itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from hasten.core import check
from hasten.core.card import Card
from hasten.optim import flat
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options
from hasten.optim.hvp import HessianProduct, hutchinson_diagonal
from hasten.optim.layout import Batch
from hasten.optim.moments import add_ratio_, ema_
from hasten.optim.step_size.base import LossOptimizer, finite_loss

CARD = Card(
    name="oasis",
    family="optim",
    paper_id=144,
    title="Doubly Adaptive Scaled Algorithm for Machine Learning Using Second-Order Information",
    authors="Jahani et al.",
    year=2022,
    arxiv="2109.05198",
    summary="Divides the gradient by the Hessian's estimated diagonal, with an adaptive step size; nothing to tune.",
    cost="One product with the Hessian and one more gradient per step, about 4 gradients in all; 2 to 3 tensors.",
    when="Smooth problems whose variables are of very different scale, with no time to tune a learning rate.",
    kinds=KINDS,
    needs=("loss",),
    use="optimizer = hasten.optim.OASIS(model.parameters(){hyper})\n"
    "inputs, labels = loader[0]\n"
    "optimizer.step(lambda: loss_fn(model(inputs), labels))",
)

Work = Sequence[tuple[Batch, list[Tensor]]]


@optimizer(CARD)
class OASIS(LossOptimizer):
    """Gradient steps scaled by a running estimate of the Hessian's diagonal, of a step size from the local smoothness.

        D <- b2 D + (1 - b2) z * (H z),  z random signs;   S = max(|D|, alpha)
        eta <- min(sqrt(1 + theta) eta_before, |x - x_before|_S / (2 |g - g_before|_{1/S})),   theta = eta / eta_before
        x <- x - lr * eta * g / S

    `D` starts as the mean of `warm_samples` products at the start, where `eta` is `eta0`. Both gradients of the
    difference are of the present batch. With `fixed_lr` the step size is that number, and `momentum` averages `g`.

    Args:
        params: real parameters, named parameters or groups of them; groups whose lr is 0 rest.
        eta0: first step size, small.
        b2: decay rate of `D`, in [0, 1).
        alpha: least scale.
        warm_samples: products with the Hessian that the first estimate is made of.
        momentum: weight of the past in the averaged gradient, in [0, 1); meant for `fixed_lr`.
        fixed_lr: step size instead of the adaptive one.
        weight_decay: decoupled: `x <- x * (1 - weight_decay * lr * eta)`.
        lr: multiplies the step size; leave it at 1, or let a schedule change it.
        stochastic: False for a loss that is the same in every step: then the gradient before is kept, not computed.
        seed: of the random signs.
        options: `maximize`, `backend`, `on_nonfinite` (which also looks at the loss), see `Options`.

    `step` takes a closure that returns the loss and does not call `backward`; the loss must be twice differentiable.
    Where the gradient did not change, `eta` is the first of the two bounds. The step size is one for all groups, and
    its options are those of the first.

    Cost: one product with the Hessian per step (about two gradients), and, if `stochastic`, one more gradient; two to
    four tensors. Source: Jahani et al. (2022), arXiv 2109.05198.
    """

    takes_complex = False
    kept = ("k", "eta", "theta")
    _hvp: HessianProduct | None = None

    def __init__(
        self,
        params: Any,
        eta0: float = 1e-3,
        b2: float = 0.99,
        alpha: float = 1e-5,
        warm_samples: int = 100,
        momentum: float = 0.0,
        fixed_lr: float | None = None,
        weight_decay: float = 0.0,
        lr: float = 1.0,
        stochastic: bool = True,
        seed: int = 0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "eta0": eta0, "b2": b2, "alpha": alpha, "warm_samples": warm_samples, "momentum": momentum,
            "fixed_lr": fixed_lr, "weight_decay": weight_decay, "lr": lr, "stochastic": stochastic, "seed": seed,
        }  # fmt: skip
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("eta0", group["eta0"])
        check.fraction("b2", group["b2"])
        check.positive("alpha", group["alpha"])
        check.integer("warm_samples", group["warm_samples"], 1)
        check.fraction("momentum", group["momentum"])
        check.integer("seed", group["seed"], 0)
        if group["fixed_lr"] is not None:
            check.positive("fixed_lr", group["fixed_lr"])

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        names = ["diagonal"]
        if group["fixed_lr"] is None:
            names += ["before"] if group["stochastic"] else ["before", "grad_before"]
        if group["momentum"]:
            names += ["exp_avg"]
        return dict.fromkeys(names, tuple(shape))

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        if "before" in state:
            state["before"].copy_(param)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step, see `LossOptimizer`."""
        try:
            return super().step(closure)
        finally:
            self._hvp = None

    def differentiate(self, loss: Tensor, params: Sequence[Tensor]) -> list[Tensor | None]:
        if self._hvp is not None:
            return super().differentiate(loss, params)
        self._hvp = HessianProduct(loss, params)
        return [grad if depends else None for grad, depends in zip(self._hvp.grads, self._hvp.depends)]

    def advance(self, work: Work) -> None:
        moving = [(batch, grads) for batch, grads in work if float(batch.group["lr"]) > 0]
        if not moving or not finite_loss(self, self._value):
            return
        memory = self.param_groups[0]
        k = memory.get("k", 0)
        self._renew_diagonals(moving, k)
        if memory["fixed_lr"] is None:
            memory["eta"], memory["theta"] = self._adapted(moving, k)
        memory["k"] = k + 1
        super().advance(moving)

    def _renew_diagonals(self, work: Work, k: int) -> None:
        memory, hvp = self.param_groups[0], self._hvp
        assert hvp is not None
        # A generator per step, from the number of the step alone, so that a resumed run draws the same signs.
        generator = torch.Generator().manual_seed(_mixed(memory["seed"], k))
        samples = memory["warm_samples"] if k == 0 else 1
        found = dict(zip(hvp.params, hutchinson_diagonal(hvp, hvp.params, generator, samples)))
        for batch, _ in work:
            for param, state in zip(batch.params, batch.states):
                fresh = found[param].to(state["diagonal"].dtype)
                ema_(state["diagonal"], fresh, 1 - batch.group["b2"] if state["step"] else 1.0)

    def _adapted(self, work: Work, k: int) -> tuple[float, float]:
        memory = self.param_groups[0]
        params = [param for batch, _ in work for param in batch.params]
        states = [state for batch, _ in work for state in batch.states]
        grads = [grad for _, group_grads in work for grad in group_grads]
        eta, theta = memory["eta0"], math.inf
        if k > 0:
            before = self._gradients_before(params, states)
            scales = [_scale(state["diagonal"], batch.group["alpha"]) for batch, _ in work for state in batch.states]
            # A parameter that has just joined has not moved, and its gradient has not changed.
            moved = [param.to(scale.dtype) - state["before"] for param, state, scale in zip(params, states, scales)]
            change = [
                (grad - old).to(scale.dtype) if state["step"] else torch.zeros_like(scale)
                for grad, old, state, scale in zip(grads, before, states, scales)
            ]
            distance = math.sqrt(flat.dot(moved, [x * scale for x, scale in zip(moved, scales)]))
            slope = math.sqrt(flat.dot(change, [x / scale for x, scale in zip(change, scales)]))
            eta, theta = adapt(memory["eta"], memory["theta"], distance, slope)
        for param, grad, state in zip(params, grads, states):
            state["before"].copy_(param)
            if "grad_before" in state:
                state["grad_before"].copy_(grad)
        return eta, theta

    def _gradients_before(self, params: Sequence[Tensor], states: Sequence[Mapping[str, Any]]) -> list[Tensor]:
        if not self.param_groups[0]["stochastic"]:
            return [state["grad_before"] for state in states]
        here = flat.copies(params)
        try:
            flat.restore(params, [state["before"] for state in states])
            found = self.differentiate(self.at_this_point(), params)
        finally:
            flat.restore(params, here)
        return [torch.zeros_like(param) if grad is None else grad for param, grad in zip(params, found)]

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        eta = group["lr"] * (self.param_groups[0]["eta"] if group["fixed_lr"] is None else group["fixed_lr"])
        keep = {"keep": 1 - group["weight_decay"] * eta} if group["weight_decay"] else {}
        return {**keep, "eta": eta, "alpha": group["alpha"], "weight": 1 - group["momentum"]}

    @staticmethod
    def update(
        p: Tensor, g: Tensor, diagonal: Tensor, before: Tensor | None = None, grad_before: Tensor | None = None,
        exp_avg: Tensor | None = None, *, eta: Any, alpha: Any, weight: Any,
    ) -> None:  # fmt: skip
        direction = g if exp_avg is None else ema_(exp_avg, g, weight)
        add_ratio_(p, -eta, direction, _scale(diagonal, alpha))


def adapt(eta: float, theta: float, distance: float, slope: float) -> tuple[float, float]:
    """The next step size and its ratio to this one, from the last movement and the change of the gradient over it.

    Args:
        eta, theta: the step size before, and its ratio to the one before that; inf at the start.
        distance, slope: norms of the movement and of the change of the gradient.
    """
    bounds = [math.sqrt(1 + theta) * eta, 0.5 * distance / slope if slope > 0 else math.inf]
    usable = [bound for bound in bounds if 0 < bound < math.inf]
    found = min(usable, default=eta)
    return found, found / eta


def _scale(diagonal: Tensor, alpha: Any) -> Tensor:
    return diagonal.abs().clamp_(min=alpha)


def _mixed(seed: int, k: int) -> int:
    """A seed for step `k` (SplitMix64): generators of neighbouring seeds begin alike."""
    x = (seed * 0xD1B54A32D192ED03 + (k + 1) * 0x9E3779B97F4A7C15) & _WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _WORD
    return (x ^ (x >> 31)) >> 1


_WORD = 2**64 - 1
