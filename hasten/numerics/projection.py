"""Euclidean projections onto simple convex sets."""

from __future__ import annotations

import torch
from torch import Tensor


def project_simplex(v: Tensor, total: float = 1.0) -> Tensor:
    """Nearest point of `{x >= 0, sum x = total}` to a vector, by sorting: O(n log n)."""
    ordered, _ = torch.sort(v, descending=True)
    excess = ordered.cumsum(0) - total
    count = torch.arange(1, len(v) + 1, dtype=v.dtype, device=v.device)
    support = int((ordered * count > excess).sum())
    return (v - excess[support - 1] / support).clamp_min(0.0)


def project_ball(v: Tensor, radius: float = 1.0) -> Tensor:
    """Nearest point of `{|x| <= radius}` in the Euclidean norm."""
    norm = v.norm()
    return v * (radius / norm) if float(norm) > radius else v
