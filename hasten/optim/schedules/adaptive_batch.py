"""AdAdaGrad: batches that grow as the noise of the gradient demands, and the optimizer that goes with them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import Unpack

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim import flat
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.layout import Batch, work_dtype
from hasten.optim.moments import axpy_

CARD = Card(
    name="adagrad-norm",
    family="optim",
    paper_id=239,
    title="AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods",
    authors="Lau, Liu, Kolar",
    year=2024,
    arxiv="2402.11215",
    summary="SGD divided by the root of the summed squared gradient norms, with batches that grow with the noise.",
    cost="One number of state; per-sample gradients of a batch whenever its size is tested.",
    when="Large batches pay off late in training, small ones early, and the right moment is not known.",
    kinds=KINDS,
    use="optimizer = hasten.optim.AdaGradNorm(model.parameters(){hyper})\n"
    "inputs, labels = loader[0]\n"
    "grads = hasten.optim.per_sample_gradients(model, loss_fn, inputs, labels)\n"
    "batch_size = hasten.optim.NormTest(eta=0.5).next_batch_size(grads, len(inputs), largest=1024)",
    search_space={"lr": LogReal(1e-2, 1e1)},
)

Grads = Tensor | Sequence[Tensor] | Mapping[str, Tensor]
"""Per-sample gradients: one tensor (n, ...) per parameter."""


class BatchSizeTest:
    """Base of the tests: whether the gradient of a batch is exact enough, and how large the batch should be if not.

    A subclass gives `needed`, the batch size at which the test would just be passed.
    """

    def next_batch_size(self, grads: Grads, batch_size: int, largest: int | None = None, per_row: int = 1) -> int:
        """Size of the batches from now on: never smaller than now, never above `largest`.

        Args:
            grads: per-sample gradients (n, ...) by parameter, n >= 2, as from `per_sample_gradients`.
            batch_size: size now.
            largest: bound on the size, such as memory sets it; at least `batch_size`.
            per_row: samples that each row of `grads` is the mean of: 1, or more for micro-batches.

        Raises:
            InputError: fewer than two rows, entries that are not finite, or a mean gradient of zero with noise while no
                `largest` is given.
        """
        check.integer("batch_size", batch_size, 1)
        check.integer("per_row", per_row, 1)
        if largest is not None:
            check.integer("largest", largest, batch_size)
        needed = per_row * self.needed(_rows(grads))
        if math.isnan(needed):
            raise InputError("grads hold entries that are not finite, or the squares of their entries overflow")
        if math.isinf(needed):
            if largest is None:
                raise InputError("the mean gradient is zero where samples differ: no batch is enough; give largest")
            return largest
        size = max(batch_size, math.ceil(needed))
        return size if largest is None else min(size, largest)

    def needed(self, grads: Sequence[Tensor]) -> float:
        """Batch size, not rounded, at which the test would just be passed; `grads` are matrices (n, entries)."""
        raise NotImplementedError


class NormTest(BatchSizeTest):
    """The noise must be small against the gradient: `b' = sum_j Var(g_j) / (eta^2 |g|^2)`.

    Args:
        eta: noise of the batch gradient allowed, relative to its norm; > 0.
    """

    def __init__(self, eta: float = 0.1) -> None:
        self.eta = check.positive("eta", eta)

    def needed(self, grads: Sequence[Tensor]) -> float:
        spread = sum(float(g.var(0).sum()) for g in grads)
        return _ratio(spread, self.eta**2 * sum(float(g.mean(0).square().sum()) for g in grads))


class InnerProductTest(BatchSizeTest):
    """Samples must agree on the descent along the gradient: `b' = Var_i(<g_i, g>) / (theta^2 |g|^4)`.

    Args:
        theta: deviation allowed, relative to the squared norm; > 0.
        per_tensor: variances by parameter tensor, added up, as published code has it; they miss what tensors share.
    """

    def __init__(self, theta: float = 0.1, per_tensor: bool = False) -> None:
        self.theta = check.positive("theta", theta)
        self.per_tensor = per_tensor

    def needed(self, grads: Sequence[Tensor]) -> float:
        parts = grads if self.per_tensor else [torch.cat(list(grads), 1)]
        spread = sum(float((g @ g.mean(0)).var()) for g in parts)
        return _ratio(spread, self.theta**2 * sum(float(g.mean(0).square().sum()) for g in parts) ** 2)


class AugmentedInnerProductTest(InnerProductTest):
    """The inner-product test, and one on what is orthogonal to the gradient; the larger of the two batches.

        b' = max(Var_i(<g_i, g>) / (theta^2 |g|^4),  sum_j Var_i((g_i - <g_i, g> g / |g|^2)_j) / (nu^2 |g|^2))

    Args:
        theta: see `InnerProductTest`.
        nu: deviation of the orthogonal part allowed, relative to the norm; > 0.
        per_tensor: see `InnerProductTest`.
    """

    def __init__(self, theta: float = 0.1, nu: float = 5.84, per_tensor: bool = False) -> None:
        super().__init__(theta, per_tensor)
        self.nu = check.positive("nu", nu)

    def needed(self, grads: Sequence[Tensor]) -> float:
        parts = grads if self.per_tensor else [torch.cat(list(grads), 1)]
        across, square = 0.0, 0.0
        for g in parts:
            mean = g.mean(0)
            length = float(mean.square().sum())
            square += length
            beside = g - torch.outer(g @ mean, mean) / length if length > 0 else g
            across += float(beside.var(0).sum())
        return max(super().needed(grads), _ratio(across, self.nu**2 * square))


class CoordinateNormTest(BatchSizeTest):
    """The norm test for every coordinate: `b' = max_j Var(g_j) / (eta^2 g_j^2)`; strict, so give `largest`.

    Args:
        eta: noise of each entry allowed, relative to it; > 0.
    """

    def __init__(self, eta: float = 0.1) -> None:
        self.eta = check.positive("eta", eta)

    def needed(self, grads: Sequence[Tensor]) -> float:
        worst = 0.0
        for g in grads:
            spread, square = g.var(0), self.eta**2 * g.mean(0).square()
            # Entries that are zero in all samples, as of dead units, say nothing.
            ratios = torch.where((spread == 0) & (square == 0), torch.zeros_like(spread), spread / square)
            largest = float(ratios.max()) if ratios.numel() else 0.0
            worst = max(worst, largest) if not math.isnan(largest) else math.nan
        return worst


def _rows(grads: Grads) -> list[Tensor]:
    parts = [grads] if isinstance(grads, Tensor) else list(grads.values() if isinstance(grads, Mapping) else grads)
    counts = {len(part) if part.ndim else 0 for part in parts}
    if len(counts) != 1 or min(counts) < 2:
        raise InputError(f"grads must be tensors of the same number n >= 2 of samples, got {sorted(counts)}")
    return [part.detach().reshape(len(part), -1).to(work_dtype(part.dtype)) for part in parts]


def _ratio(spread: float, square: float) -> float:
    if square > 0 or math.isnan(spread) or math.isnan(square):
        return spread / square if square else math.nan
    return math.inf if spread > 0 else 0.0


@optimizer(CARD)
class AdaGradNorm(RuleOptimizer):
    """SGD whose step size falls with the gradients seen so far, as one number for all parameters.

        G <- G + |g|^2,  G = b0^2 at first;   p <- p - lr * g / sqrt(G)

    It needs no knowledge of smoothness or noise, and with batches that grow by one of the tests (`NormTest`, ...) it
    keeps the rate of exact gradients in the number of steps.

    Args:
        params: parameters, named parameters or groups of them; one `G` serves all groups whose lr is not 0.
        lr: learning rate.
        b0: root of the first `G`, > 0; of the first group for all.
        weight_decay: added to the gradient as `weight_decay * p`.
        per_row: a `G` for every row (output unit) of tensors of two axes or more, and for every entry of others.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Cost: a norm per step; one number of state, with `per_row` one per row. Source: Lau, Liu, Kolar (2024), arXiv
    2402.11215.
    """

    kept = ("G",)
    buffers: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        b0: float = 1e-2,
        weight_decay: float = 0.0,
        per_row: bool = False,
        **options: Unpack[Options],
    ) -> None:
        super().__init__(params, {"lr": lr, "b0": b0, "weight_decay": weight_decay, "per_row": per_row}, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("b0", group["b0"])

    def whole(self, group: Mapping[str, Any]) -> bool:
        return group["per_row"]

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        if not group["per_row"]:
            return {}
        return {"sum": tuple(shape[:1]) if len(shape) > 1 else tuple(shape)}

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        if "sum" in state:
            state["sum"].fill_(group["b0"] ** 2)

    def advance(self, work: Sequence[tuple[Batch, list[Tensor]]]) -> None:
        memory, total = self.param_groups[0], 0.0
        for batch, grads in work:
            if float(batch.group["lr"]) > 0 and not batch.group["per_row"]:
                decay = batch.group["weight_decay"] * (-1.0 if batch.group["maximize"] else 1.0)
                pairs = [(grads, grads), *([(grads, batch.params), (batch.params, batch.params)] if decay else [])]
                gg, gp, pp = [*flat.dots(*pairs), 0.0, 0.0][:3]
                total += gg + 2 * decay * gp + decay**2 * pp
        memory["G"] = memory.get("G", memory["b0"] ** 2) + total
        super().advance(work)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        root = 1.0 if group["per_row"] else math.sqrt(self.param_groups[0]["G"])
        return {**self.decay(group, coupled=True), "rate": group["lr"] / root}

    @staticmethod
    def update(p: Tensor, g: Tensor, sum: Tensor | None = None, *, rate: Any) -> None:
        if sum is None:
            axpy_(p, -rate, g)
            return
        square = g * g
        sum.add_(square.flatten(2).sum(2) if g.ndim > 2 else square)
        p.sub_(rate * g / sum.sqrt().reshape(*sum.shape, *[1] * (g.ndim - sum.ndim)))
