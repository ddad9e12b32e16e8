"""Divergence of a vector field by automatic differentiation, exact or estimated by random probes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


def divergence(
    field: Callable[[Tensor], Tensor], x: Tensor, probes: int = 0, generator: torch.Generator | None = None
) -> tuple[Tensor, Tensor]:
    """`(field(x), its divergence)`; the divergence has shape (batch,).

    Args:
        field: a map of a batch to a batch of the same shape that treats samples alone.
        x: the batch, shape (batch, ...).
        probes: random signs to average over (Hutchinson's estimator, unbiased); 0 sums all diagonal entries.
        generator: source of the signs.

    Cost: one evaluation, and one backward pass per probe, or per dimension of a sample if `probes` is 0.
    """
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        value = field(at)
        total = x.new_zeros(len(x))
        if not value.requires_grad:
            return value, total
        for direction in _directions(x, probes, generator):
            (slope,) = torch.autograd.grad(value, at, direction, retain_graph=True, materialize_grads=True)
            total = total + (slope * direction).flatten(1).sum(1)
    return value.detach(), total / max(1, probes)


def _directions(x: Tensor, probes: int, generator: torch.Generator | None) -> list[Tensor]:
    if probes > 0:
        device = x.device if generator is None else generator.device
        signs = torch.randint(0, 2, (probes, *x.shape), generator=generator, device=device).to(x.device)
        return list(signs.to(x.dtype) * 2.0 - 1.0)
    basis = torch.eye(x[0].numel(), dtype=x.dtype, device=x.device)
    return [row.reshape(x.shape[1:]).expand_as(x) for row in basis]
