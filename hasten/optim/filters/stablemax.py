"""StableMax: a softmax whose terms grow linearly, so that cross entropy does not run into rounding."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core import check
from hasten.core.errors import InputError


def stablemax(x: Tensor, dim: int = -1) -> Tensor:
    """Probabilities `s(x_i) / sum_j s(x_j)` with `s(x) = x + 1` for x >= 0 and `1 / (1 - x)` below.

    Where the exponential of softmax soon makes all terms but one vanish in rounding, these grow and fall like x.

    Args:
        x: logits.
        dim: axis of the classes.

    Source: Prieto et al. (2025), arXiv 2501.04697.
    """
    return log_stablemax(x, dim).exp()


def log_stablemax(x: Tensor, dim: int = -1) -> Tensor:
    """Logarithm of `stablemax(x, dim)`, computed without overflow."""
    positive = x >= 0
    # The branch that is not taken must be finite, or its gradient would be NaN times zero.
    up, down = torch.where(positive, x, 0.0), torch.where(positive, 0.0, x)
    return torch.log_softmax(torch.where(positive, torch.log1p(up), -torch.log1p(-down)), dim)


def stablemax_cross_entropy(
    logits: Tensor,
    target: Tensor,
    reduction: str = "mean",
    dtype: torch.dtype = torch.float64,
    ignore_index: int = -100,
) -> Tensor:
    """Cross entropy of `stablemax`; stands in for `torch.nn.functional.cross_entropy` with class indices.

    Its gradient stays above zero however large the logits grow, so that a network without weight decay goes on learning
    after it fits the training data.

    Args:
        logits: shape (C), (N, C) or (N, C, ...).
        target: class indices, shape (), (N) or (N, ...).
        reduction: `mean`, `sum` or `none`.
        dtype: precision of the computation and of the result; gradients come back in that of the logits.
        ignore_index: a target that does not count.

    Raises:
        InputError: the targets are not class indices, or `dtype` or `reduction` is none that is known.

    Cost: as `cross_entropy`, in double precision. Source: Prieto et al. (2025), arXiv 2501.04697.
    """
    check.one_of("reduction", reduction, ("mean", "sum", "none"))
    if not dtype.is_floating_point:
        raise InputError(f"dtype must be a real floating-point type, got {dtype}")
    if target.dtype.is_floating_point or target.dtype.is_complex:
        raise InputError(f"target must hold class indices (int64), got {target.dtype}; probabilities are not taken")
    log_probabilities = log_stablemax(logits.to(dtype), dim=0 if logits.ndim == 1 else 1)
    return F.nll_loss(log_probabilities, target, reduction=reduction, ignore_index=ignore_index)
