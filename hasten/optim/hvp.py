"""Products with the Hessian of a loss, without forming it, and what can be read off them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError

Product = Callable[[Sequence[Tensor]], list[Tensor]]
"""What `make_hvp` gives: takes and returns one tensor per parameter."""


class HessianProduct:
    """`H v` at the point at which the loss was evaluated; see `make_hvp`.

    Attributes:
        params: the parameters that `H` is taken in.
        loss: value of the loss, detached.
        grads: its gradients, detached, zero for parameters that it does not depend on.
        depends: whether it depends on each of them.
    """

    def __init__(self, loss: Tensor, params: Sequence[Tensor]) -> None:
        self.params = list(params)
        self._grads = torch.autograd.grad(loss, self.params, create_graph=True, allow_unused=True)
        self.loss = loss.detach()
        self.depends = [grad is not None for grad in self._grads]
        self.grads = [
            torch.zeros_like(param) if grad is None else grad.detach().clone()
            for param, grad in zip(self.params, self._grads)
        ]

    def __call__(self, vectors: Sequence[Tensor]) -> list[Tensor]:
        _matching(vectors, self.params)
        pairs = [(grad, v) for grad, v in zip(self._grads, vectors) if grad is not None and grad.requires_grad]
        if not pairs:
            return [torch.zeros_like(param) for param in self.params]
        grads, given = zip(*pairs)
        found = torch.autograd.grad(grads, self.params, given, retain_graph=True, allow_unused=True)
        return [torch.zeros_like(param) if h is None else h.detach() for param, h in zip(self.params, found)]


def make_hvp(loss: Callable[[], Tensor], params: Iterable[Tensor]) -> HessianProduct:
    """Products `H v` with the Hessian of a loss at the present parameters: `hvp = make_hvp(loss, params); hvp(v)`.

    The loss is evaluated once and differentiated once; its graph is kept until the result is dropped. Afterwards each
    product is one more backward pass, about twice the cost of a gradient. The gradient is at hand as `hvp.grads`.

    Args:
        loss: returns the loss with its graph (no `backward`); must be twice differentiable.
        params: real tensors that require gradients.

    Raises:
        InputError: the loss is not one real number with a graph, or a parameter is complex or does not train.
    """
    params = list(params)
    if not params:
        raise InputError("params is empty: there is nothing to differentiate in")
    for index, param in enumerate(params):
        if not param.is_floating_point() or not param.requires_grad:
            raise InputError(
                f"params[{index}] must be a real tensor that requires a gradient, got {param.dtype} with "
                f"requires_grad={param.requires_grad}"
            )
    with torch.enable_grad():
        value = loss()
        if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
            raise InputError(f"loss must return one number with its graph (and not call backward), got {value!r}")
        return HessianProduct(value, params)


def hutchinson_diagonal(
    hvp: Product, params: Sequence[Tensor], generator: torch.Generator, samples: int = 1
) -> list[Tensor]:
    """Unbiased estimate of the diagonal of `H`: the mean of `z * (H z)` over random signs `z`.

    Exact for a diagonal `H`. The variance of entry `i` is the sum of `H_ij^2` over `j != i`, divided by `samples`.

    Args:
        hvp: products with the Hessian, as from `make_hvp`.
        params: tensors of the shapes, dtypes and devices that `hvp` takes.
        generator: source of the signs; drawn on its device.
        samples: products to spend.
    """
    total = [torch.zeros_like(param) for param in params]
    for _ in range(check.integer("samples", samples, 1)):
        signs = [_on(_draw_signs, param, generator) for param in params]
        for sum_, z, h in zip(total, signs, hvp(signs)):
            sum_.addcmul_(z, h)
    return [sum_ / samples for sum_ in total]


def directional_sharpness(hvp: Product, direction: Sequence[Tensor]) -> float:
    """Curvature along a direction, `v^T H v / |v|^2`.

    Raises:
        InputError: the direction is zero.
    """
    square = _dot(direction, direction)
    if square == 0.0:
        raise InputError("direction is zero in all entries: it has no curvature along it")
    return _dot(direction, hvp(direction)) / square


def cauchy_row_norms(
    hvp: Product, params: Sequence[Tensor], generator: torch.Generator, probes: int = 50
) -> list[Tensor]:
    """Estimate of the sum of `|H_ij|` over `j` for each row `i`: the median of `|H v|` over standard Cauchy `v`.

    `(H v)_i` is Cauchy distributed with the row's sum as its scale. The relative error is about
    `1.6 / sqrt(probes)` per row.

    Args:
        hvp: products with the Hessian, as from `make_hvp`.
        params: tensors of the shapes, dtypes and devices that `hvp` takes.
        generator: source of the probes; drawn on its device.
        probes: products to spend; as many copies of the parameters are held.
    """
    found: list[list[Tensor]] = [[] for _ in params]
    for _ in range(check.integer("probes", probes, 1)):
        for kept, h in zip(found, hvp([_on(_draw_cauchy, param, generator) for param in params])):
            kept.append(h.abs())
    return [torch.quantile(torch.stack(kept).flatten(1), 0.5, dim=0).view_as(kept[0]) for kept in found]


def _matching(vectors: Sequence[Tensor], params: Sequence[Tensor]) -> None:
    shapes = [tuple(vector.shape) for vector in vectors], [tuple(param.shape) for param in params]
    if shapes[0] != shapes[1]:
        raise InputError(f"a product with H takes one tensor per parameter, shaped {shapes[1]}; got {shapes[0]}")


def _on(draw: Callable[..., Tensor], like: Tensor, generator: torch.Generator) -> Tensor:
    drawn = draw(torch.empty(like.shape, dtype=like.dtype, device=generator.device), generator)
    return drawn.to(like.device)


def _draw_signs(empty: Tensor, generator: torch.Generator) -> Tensor:
    return empty.bernoulli_(0.5, generator=generator).mul_(2).sub_(1)


def _draw_cauchy(empty: Tensor, generator: torch.Generator) -> Tensor:
    return empty.cauchy_(generator=generator)


def _dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(left, right, strict=True))
