"""Coordinate-wise clipping: the largest entries of a gradient, or of an update, are cut to a quantile."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal, Real
from hasten.optim.adapter import KINDS, hook
from hasten.optim.layout import real, work_dtype
from hasten.optim.wrapper import StepHook

CARD = Card(
    name="coordinate-clip",
    family="optim",
    paper_id=226,
    title="Toward Understanding Why Adam Converges Faster Than SGD for Transformers",
    authors="Pan, Li",
    year=2023,
    arxiv="2306.00204",
    summary="Cuts the largest tenth of the entries of every gradient, or update, to the size of the next one.",
    cost="One selection (k-th largest) per tensor; with the update as target also a copy of the parameters.",
    when="SGD is held to a small learning rate by a few coordinates of large curvature, as in transformers.",
    kinds=KINDS,
    use="optimizer = torch.optim.SGD(model.parameters(), momentum=0.9{hyper.lr})\n"
    "clip = hasten.optim.CoordinateClip(optimizer{hyper})",
    search_space={"lr": LogReal(1e-3, 1.0), "fraction": Real(0.05, 0.5), "target": Choice("grad", "update")},
)


@hook(CARD, base=partial(torch.optim.SGD, momentum=0.9))
class CoordinateClip(StepHook):
    """Cuts the entries of largest magnitude to the magnitude of the largest that is left; works on any optimizer.

        tau = the magnitude that `fraction` of the entries exceed;  x <- min(max(x, -tau), tau)

    `x` is the gradient before the step or, with `target="update"`, the change that the step made: with momentum the
    memory then stays as it is and only what it gives is clipped, and Adam can be clipped as well. Entries that are not
    finite are left as they are, so that an overflow shows. Prefer it where few coordinates are steep: the step that
    they allow is then not everyone's. A tensor with less than `1 / fraction` entries is left alone under
    `scope="tensor"`. How steep a step is, `hasten.optim.hvp.directional_sharpness` tells.

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`.
        fraction: share of the entries to be clipped, in [0, 1); the paper has 0.1 to 0.5.
        scope: `tensor`, each by itself, or `global`, all together.
        target: `grad` or `update`.
        threshold: a fixed `tau` above 0 instead of the quantile.

    Cost: one selection per tensor (`global`: and a copy of all magnitudes). Source: Pan, Li (2023), arXiv 2306.00204.
    """

    repeatable: ClassVar[bool] = True

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        fraction: float = 0.1,
        scope: str = "tensor",
        target: str = "grad",
        threshold: float | None = None,
    ) -> None:
        self.fraction = check.fraction("fraction", fraction)
        self.scope = check.one_of("scope", scope, ("tensor", "global"))
        self.target = check.one_of("target", target, ("grad", "update"))
        self.threshold = None if threshold is None else check.positive("threshold", threshold)
        self.stage = "gradient" if target == "grad" else "update"  # type: ignore[misc]
        super().__init__(optimizer)

    def acts(self, method: str) -> bool:
        return method == ("on_gradients" if self.target == "grad" else "on_update")

    def on_gradients(self, params: list[Tensor]) -> None:
        grads = [real(param.grad) for param in params]  # type: ignore[arg-type]
        for grad, bound in zip(grads, self._bounds(grads)):
            grad.copy_(torch.where(grad.isfinite(), _clipped(grad, bound), grad))

    def on_update(self, params: list[Tensor], old: list[Tensor]) -> None:
        after, before = [real(param) for param in params], [real(tensor) for tensor in old]
        changes = [new - was for new, was in zip(after, before)]
        for new, was, change, bound in zip(after, before, changes, self._bounds(changes)):
            clipped = _clipped(change, bound)
            cut = change.isfinite() & (clipped != change)
            new.copy_(torch.where(cut, was + clipped, new))

    def _bounds(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        if self.threshold is not None or not tensors:
            return [torch.full((), self.threshold or 0.0, dtype=work_dtype(x.dtype), device=x.device) for x in tensors]
        if self.scope == "tensor":
            return [self._quantile(tensor.abs().flatten()) for tensor in tensors]
        device = tensors[0].device
        bound = self._quantile(torch.cat([tensor.abs().flatten().to(device) for tensor in tensors]))
        return [bound.to(tensor.device) for tensor in tensors]

    def _quantile(self, magnitudes: Tensor) -> Tensor:
        count = magnitudes.numel()
        # 0.29 * 100 falls just below 29 in floating point.
        exceeding = int(self.fraction * count + 1e-6)
        if count == 0 or exceeding == 0:
            return torch.full((), torch.inf, device=magnitudes.device)
        return magnitudes.to(work_dtype(magnitudes.dtype)).kthvalue(count - exceeding).values


def _clipped(x: Tensor, bound: Tensor) -> Tensor:
    return torch.minimum(torch.maximum(x, -bound.to(x.dtype)), bound.to(x.dtype))
