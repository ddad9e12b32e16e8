"""Distances between sets of graphs."""

from __future__ import annotations

import torch
from torch import Tensor


def degree_mmd(adj: Tensor, mask: Tensor, other: Tensor, other_mask: Tensor, bandwidth: float = 1.0) -> float:
    """Squared maximum mean discrepancy between the degree histograms of two sets of graphs, biased.

    The kernel is `exp(-W^2/(2 bandwidth^2))`, W the earth mover's distance of two histograms.

    Args:
        adj, other: 0-1 adjacency, (graphs, n, n).
        mask, other_mask: which nodes there are, (graphs, n).

    Source: You et al. (2018), arXiv 1802.08773.
    """
    size = max(adj.shape[1], other.shape[1])
    first, second = _cumulative(adj, mask, size), _cumulative(other, other_mask, size)

    def similarity(a: Tensor, b: Tensor) -> Tensor:
        return (-torch.cdist(a, b, p=1).square() / (2.0 * bandwidth**2)).exp().mean()

    mmd = similarity(first, first) + similarity(second, second) - 2.0 * similarity(first, second)
    return float(mmd)


def _cumulative(adj: Tensor, mask: Tensor, size: int) -> Tensor:
    """Cumulative degree histogram of every graph."""
    degrees = adj.sum(-1).round().long()
    histogram = torch.zeros(len(adj), size, dtype=torch.float64).scatter_add_(1, degrees, mask.double())
    return (histogram / histogram.sum(1, keepdim=True)).cumsum(1)
