"""Weighted particles: effective sample size, resampling, and least squares for the variance of their weights."""

from __future__ import annotations

import torch
from torch import Tensor


def effective_size(log_weights: Tensor) -> float:
    """`(sum w)^2 / sum w^2`: how many equally weighted particles are worth as much."""
    weights = log_weights.double().softmax(0)
    return float(1.0 / weights.square().sum())


def systematic(log_weights: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Indices of a systematic resampling: particle i appears floor or ceiling of `n w_i` times, in order."""
    weights = log_weights.double().softmax(0)
    count = len(weights)
    device = weights.device if generator is None else generator.device
    offset = torch.rand((), generator=generator, dtype=torch.float64, device=device).to(weights.device)
    points = (torch.arange(count, dtype=torch.float64, device=weights.device) + offset) / count
    return torch.searchsorted(weights.cumsum(0), points).clamp_(max=count - 1)


def least_variance(target: Tensor, columns: Tensor, weights: Tensor) -> Tensor:
    """The theta for which `target + columns @ theta` has the least weighted variance.

    Args:
        target: shape (n,).
        columns: shape (n, k); columns that depend on each other get the least theta.
        weights: shape (n,), sum 1.
    """
    root = weights.sqrt()
    centred = (columns - weights @ columns) * root[:, None]
    wanted = (target - weights @ target) * root
    scale = centred.norm(dim=0).clamp_min(torch.finfo(centred.dtype).tiny)
    return torch.linalg.lstsq(centred / scale, -wanted[:, None], driver="gelsd").solution[:, 0] / scale


def weighted_variance(values: Tensor, weights: Tensor) -> float:
    """Variance of `values` (n,) under `weights` (n,) of sum 1."""
    return float(weights @ (values - weights @ values).square())
