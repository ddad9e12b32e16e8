"""SAM: steps on the gradient at the worst point nearby, with any optimizer."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, Parts, companion
from hasten.optim.wrapper import OptimizerWrapper

CARD = Card(
    name="sam",
    family="optim",
    title="Sharpness-Aware Minimization for Efficiently Improving Generalization",
    authors="Foret et al.",
    year=2020,
    arxiv="2010.01412",
    summary="Steps on the gradient at the worst point nearby, which leads to flat minima; for any optimizer.",
    cost="Two forward and backward passes per step, and a copy of the parameters.",
    when="Generalisation counts more than the time of a step.",
    kinds=KINDS,
    needs=("loss",),
    use="base = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "optimizer = hasten.optim.SAM(base{hyper})\n"
    "for inputs, labels in loader:\n"
    "    def closure():\n"
    "        optimizer.zero_grad()\n"
    "        loss = loss_fn(model(inputs), labels)\n"
    "        loss.backward()\n"
    "        return loss\n"
    "    optimizer.step(closure)",
    search_space={"lr": LogReal(1e-4, 1e-1), "rho": LogReal(1e-2, 0.5)},
)


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own = dict(hyper)
    base = torch.optim.AdamW(model.parameters(), lr=own.pop("lr", 1e-3))
    return Parts(SAM(base, **own))


@companion(CARD, _assemble)
class SAM(OptimizerWrapper):
    """Sharpness-aware minimisation around any optimizer.

        e = rho g / |g|   (adaptive: rho p^2 g / | |p| g |);   the base steps on grad L(p + e)

    The norm is over all parameters. The closure is called twice, the second time at `p + e`; the parameters come back
    exactly.

    Args:
        base: any `torch.optim.Optimizer` that takes gradients.
        rho: radius of the neighbourhood, >= 0; ten times larger if `adaptive`.
        adaptive: measure the neighbourhood relative to the size of each weight (ASAM).

    Raises:
        InputError: the base evaluates gradients itself, or `step` got no closure.

    Cost: two forward and backward passes. Source: Foret et al. (2020), arXiv 2010.01412.
    """

    takes = "closure"  # type: ignore[assignment]

    def __init__(self, base: Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        super().__init__(base)
        refuse_evaluating(self, base)
        self.rho = check.nonnegative("rho", rho)
        self.adaptive = adaptive

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """One step of the base; `closure` computes the gradients and returns the loss, which is returned."""
        if closure is None:
            raise InputError(f"{type(self).__name__}.step needs a closure, which it evaluates twice")
        with torch.enable_grad():
            loss = closure()
        params = [p for group in self.param_groups for p in group["params"] if p.grad is not None]
        directions = worst_direction(params, [p.grad for p in params], self.rho, self.adaptive)  # type: ignore[misc]
        with moved(params, directions), torch.enable_grad():
            closure()
        self.base.step()
        return loss


def refuse_evaluating(wrapper: Optimizer, base: Optimizer) -> None:
    """Raise `InputError` for a base that does not take gradients."""
    if getattr(base, "takes", "gradients") != "gradients":
        raise InputError(
            f"{type(wrapper).__name__} gives gradients to its base, but {type(base).__name__} evaluates its own inside "
            "the step"
        )


@torch.no_grad()
def worst_direction(
    params: Sequence[Tensor], grads: Sequence[Tensor], rho: float, adaptive: bool = False
) -> list[Tensor]:
    """The step of length `rho` along which the loss grows fastest, over all tensors together; 0 for a zero gradient."""
    scaled = [p.abs() * g for p, g in zip(params, grads)] if adaptive else list(grads)
    norms = [torch.linalg.vector_norm(g) for g in scaled]
    if not norms:
        return []
    norm = torch.linalg.vector_norm(torch.stack([n.to(norms[0].device) for n in norms]))
    factor = rho / (norm + 1e-12)
    if adaptive:
        return [p.abs() * s * factor.to(p) for p, s in zip(params, scaled)]
    return [g * factor.to(p) for p, g in zip(params, grads)]


@contextmanager
def moved(params: Iterable[Tensor], directions: Iterable[Tensor]) -> Iterator[None]:
    """Inside, the parameters are moved along the directions; afterwards they are what they were, exactly."""
    pairs = [(p, p.detach().clone(), d) for p, d in zip(params, directions)]
    with torch.no_grad():
        for p, _, d in pairs:
            p.add_(d)
    try:
        yield
    finally:
        with torch.no_grad():
            for p, old, _ in pairs:
                p.copy_(old)
