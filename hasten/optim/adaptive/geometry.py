"""Why Adam is fast: how a Hessian looks along the coordinate axes, and any optimizer in rotated coordinates."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.errors import InputError
from hasten.optim.hvp import Product, cauchy_row_norms
from hasten.optim.layout import real, work_dtype
from hasten.optim.wrapper import OptimizerWrapper

LARGEST = 4096
"""Most entries that are rotated by one matrix unless asked for: 64 MiB in single precision."""


def hessian_11_norm(hvp: Product, params: Sequence[Tensor], generator: torch.Generator, probes: int = 50) -> float:
    """Sum of `|H_ij|` over all entries of the Hessian, divided by the number of parameters.

    It bounds the smoothness in the maximum norm, on which the speed of Adam depends, and is comparable with
    `spectral_norm`: much smaller where large curvatures lie along few coordinates, up to `sqrt(d)` times larger
    elsewhere.

    Args:
        hvp: products with the Hessian, as from `hasten.optim.hvp.make_hvp`.
        params: tensors of the shapes, dtypes and devices that `hvp` takes.
        generator: source of the Cauchy probes.
        probes: products to spend. For at most as many parameters the value is exact, otherwise an estimate with a
            relative error of about `1.6 / sqrt(probes)` per row, much of which averages out.

    Source: Xie, Mohamadi, Li (2024), arXiv 2410.08198.
    """
    check.integer("probes", probes, 1)
    count = sum(param.numel() for param in params)
    if count > probes:
        rows = cauchy_row_norms(hvp, params, generator, probes)
        return sum(float(row.double().sum()) for row in rows) / count
    columns = (hvp(unit) for unit in _units(params))
    return sum(float(part.double().abs().sum()) for column in columns for part in column) / count


def _units(params: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    for place, param in enumerate(params):
        for entry in range(param.numel()):
            unit = [torch.zeros_like(other) for other in params]
            unit[place].view(-1)[entry] = 1.0
            yield unit


def spectral_norm(
    hvp: Product, params: Sequence[Tensor], generator: torch.Generator, iterations: int = 100, tol: float = 1e-4
) -> float:
    """Largest absolute eigenvalue of the Hessian, by power iteration from a random start.

    Args:
        hvp, params, generator: as in `hessian_11_norm`.
        iterations: most products to spend.
        tol: relative change of the estimate at which to stop; 0 for never.
    """
    check.integer("iterations", iterations, 1)
    check.nonnegative("tol", tol)
    size = 0.0
    drawn = (
        torch.randn(param.shape, dtype=param.dtype, generator=generator, device=generator.device) for param in params
    )
    vectors = [v.to(param.device) for v, param in zip(drawn, params)]
    length = _length(vectors)
    for _ in range(iterations):
        vectors = hvp([v / length for v in vectors])
        before, size = size, _length(vectors)
        length = size
        if size == 0.0 or abs(size - before) < tol * size:
            break
    return size


def _length(vectors: Sequence[Tensor]) -> float:
    return math.sqrt(sum(float(v.double().square().sum()) for v in vectors))


def random_rotation(dim: int, generator: torch.Generator) -> Tensor:
    """A uniformly random orthogonal matrix, float64."""
    gauss = torch.randn(check.integer("dim", dim, 1), dim, dtype=torch.float64, generator=generator)
    q, r = torch.linalg.qr(gauss)
    return q * r.diagonal().sign()


class Rotated(OptimizerWrapper):
    """Runs any optimizer in rotated coordinates: it sees `y` and `Q^T g` where the network has `x = Q y`.

        optimizer = Rotated(torch.optim.Adam(model.parameters(), lr=1e-3))

    SGD does not notice; Adam loses what it gains from the coordinate axes. Every tensor is rotated for itself, by
    random matrices that follow from `seed` and its place. Gradient hooks of the inner optimizer act in `y`.

    Args:
        base: any optimizer that takes its gradients in place.
        block: entries that are rotated together, consecutive ones of each tensor; None for all of it.
        seed: of the rotations.

    Raises:
        InputError: the base evaluates its own gradients, or a tensor is too large for one matrix and `block` is None.

    Cost: two products with Q per step, `numel * block` operations and numbers in memory. Source: Xie, Mohamadi, Li
    (2024), arXiv 2410.08198.
    """

    def __init__(self, base: Optimizer, block: int | None = None, seed: int = 0) -> None:
        super().__init__(base)
        if self.takes != "gradients":
            raise InputError(
                f"{type(base).__name__} evaluates its own gradients inside the step, where they cannot be rotated; "
                "give Rotated an optimizer that takes gradients"
            )
        self.block = None if block is None else check.integer("block", block, 1)
        self.seed = check.integer("seed", seed, 0)
        self._matrices: dict[Tensor, list[Tensor]] = {}
        self._check()

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step of the base in rotated coordinates."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        moved: list[tuple[Tensor, Tensor, Tensor]] = []
        for place, param in enumerate(self._params()):
            if param.grad is None or not param.numel():
                continue
            if param.grad.layout != torch.strided:
                raise InputError("Rotated does not take sparse gradients; build the layer with sparse=False")
            moved.append((param, param.grad, param.detach().clone()))
            turned = self._turn(param, place, param.grad).to(real(param.grad).dtype)
            param.grad = torch.view_as_complex(turned) if param.is_complex() else turned
            real(param).copy_(self._turn(param, place, param))
        before = [param.detach().clone() for param, *_ in moved]
        try:
            self.base.step()
        finally:
            for (param, grad, old), start in zip(moved, before):
                dtype = work_dtype(param.dtype)
                step = real(param).to(dtype) - real(start).to(dtype)
                param.grad = grad
                # Adding the step, and not turning the point back, leaves what does not move as it is.
                real(param).copy_(real(old) + self._turn(param, -1, step, back=True))
        return loss

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters to the base."""
        super().add_param_group(param_group)
        self._check()

    def own_state(self) -> dict[str, Any]:
        return {"seed": self.seed, "block": self.block}

    def load_own_state(self, state: Mapping[str, Any]) -> None:
        self.seed, self.block, self._matrices = state["seed"], state["block"], {}

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_matrices": {}}

    def _params(self) -> Iterator[Tensor]:
        return (param for group in self.param_groups for param in group["params"])

    def _check(self) -> None:
        for param in self._params():
            if self.block is None and param.numel() > LARGEST:
                raise InputError(
                    f"a tensor of {param.numel()} entries is too large to be rotated by one matrix; set block, e.g. 256"
                )

    def _turn(self, param: Tensor, place: int, x: Tensor, back: bool = False) -> Tensor:
        """`Q^T x`, or `Q x` on the way back, as reals; the matrices are drawn when first used."""
        if param not in self._matrices:
            self._matrices[param] = self._draw(param, place)
        matrices = self._matrices[param]
        parts = real(x).to(work_dtype(param.dtype)).reshape(-1).split([len(matrix) for matrix in matrices])
        turned = [matrix @ part if back else part @ matrix for matrix, part in zip(matrices, parts)]
        return torch.cat(turned).view(real(x).shape)

    def _draw(self, param: Tensor, place: int) -> list[Tensor]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + place)
        count = real(param).numel()
        size = min(self.block or count, count)
        sizes = [size] * (count // size) + [count % size] * (count % size > 0)
        return [random_rotation(n, generator).to(param.device, work_dtype(param.dtype)) for n in sizes]
