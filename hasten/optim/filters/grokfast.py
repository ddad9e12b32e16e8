"""Grokfast: amplify the slow part of the gradient, before any optimizer."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal, Real
from hasten.optim.adapter import KINDS, hook
from hasten.optim.wrapper import StepHook

PAPER = {
    "paper_id": 154,
    "title": "Grokfast: Accelerated Grokking by Amplifying Slow Gradients",
    "authors": "Lee et al.",
    "year": 2024,
    "arxiv": "2405.20233",
    "kinds": KINDS,
    "family": "optim",
}
EMA_CARD = Card(
    name="grokfast",
    **PAPER,
    summary="Adds a running average of past gradients to the gradient that any optimizer sees.",
    cost="One tensor per parameter, one elementwise pass.",
    when="Generalisation sets in long after the training data are fitted, or progress is in slow directions.",
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "slow = hasten.optim.GrokfastEMA(optimizer{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "alpha": Real(0.8, 0.99), "lamb": LogReal(0.5, 5.0)},
)
MA_CARD = Card(
    name="grokfast-ma",
    **PAPER,
    summary="Adds the mean of a window of past gradients to the gradient that any optimizer sees.",
    cost="As many tensors per parameter as the window is long, about three elementwise passes.",
    when="As Grokfast with a running average, where memory is plenty and the window is known.",
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "slow = hasten.optim.GrokfastMA(optimizer, window=100{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "lamb": LogReal(0.5, 10.0)},
)


@hook(EMA_CARD)
class GrokfastEMA(StepHook):
    """Amplifies the slow part of every gradient by a running average; works on any optimizer.

        h <- alpha h + (1 - alpha) g      (h = g at first)
        g <- g + lamb h

    A constant gradient is multiplied by `1 + lamb`, one that alternates in sign by
    `1 + lamb (1 - alpha) / (1 + alpha)`. Prefer it where the useful gradient is the part that stays while the rest
    fluctuates; with SGD, lower the learning rate accordingly. Each gradient is changed in place, so make it anew for
    every step (`zero_grad`).

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        alpha: decay of the average, in [0, 1).
        lamb: weight of the average, at least 0.
        after_step: steps at the beginning that are left alone.

    Cost: one tensor per parameter. Source: Lee et al. (2024), arXiv 2405.20233.
    """

    def __init__(
        self, optimizer: Optimizer | None = None, alpha: float = 0.98, lamb: float = 2.0, after_step: int = 0
    ) -> None:
        self.alpha = check.fraction("alpha", alpha)
        self.lamb = check.nonnegative("lamb", lamb)
        self.after_step = check.integer("after_step", after_step, 0)
        super().__init__(optimizer)

    def on_gradients(self, params: list[Tensor]) -> None:
        if self.steps <= self.after_step:
            return
        for param in params:
            grad: Tensor = param.grad  # type: ignore[assignment]
            state = self.state.get(param)
            if state is None:
                state = self.state[param] = {"average": grad.clone()}
            else:
                state["average"].mul_(self.alpha).add_(grad, alpha=1 - self.alpha)
            grad.add_(state["average"], alpha=self.lamb)


@hook(MA_CARD)
class GrokfastMA(StepHook):
    """Amplifies the slow part of every gradient by the mean of a window; works on any optimizer.

        g <- g + lamb * mean(last `window` gradients, this one included)

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        window: gradients in the window.
        lamb: weight of their mean, at least 0.
        reduce: `mean` or `sum` of the window.
        warmup: leave gradients alone until the window is full; otherwise average what there is.

    Cost: `window` tensors per parameter; the sum is kept up to date, and made anew once per window so that rounding
    errors do not pile up. Source: Lee et al. (2024), arXiv 2405.20233.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        window: int = 100,
        lamb: float = 5.0,
        reduce: str = "mean",
        warmup: bool = True,
    ) -> None:
        self.window = check.integer("window", window, 1)
        self.lamb = check.nonnegative("lamb", lamb)
        self.reduce = check.one_of("reduce", reduce, ("mean", "sum"))
        self.warmup = warmup
        super().__init__(optimizer)

    def on_gradients(self, params: list[Tensor]) -> None:
        for param in params:
            grad: Tensor = param.grad  # type: ignore[assignment]
            state = self.state.get(param)
            if state is None:
                zeros = grad.new_zeros((self.window, *grad.shape))
                state = self.state[param] = {"past": zeros, "sum": torch.zeros_like(grad), "count": 0}
            place = state["count"] % self.window
            state["sum"].add_(grad).sub_(state["past"][place])
            state["past"][place] = grad
            state["count"] += 1
            if place == self.window - 1:
                torch.sum(state["past"], 0, out=state["sum"])
            filled = min(state["count"], self.window)
            if filled == self.window or not self.warmup:
                grad.add_(state["sum"], alpha=self.lamb / (filled if self.reduce == "mean" else 1))
