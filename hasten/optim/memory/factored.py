"""Second moments of a matrix kept as row and column averages, and clipping of an update by its size."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

from hasten.optim.moments import Scalar, ema_, rms

_own = threading.local()


def squared(x: Tensor) -> Tensor:
    """`x^2` in memory that is used again by the next call of this thread.

    Large tensors that come and go are given back to the system each time, and asking for them again costs more than the
    arithmetic on them.
    """
    if torch.compiler.is_compiling() or x.device.type != "cpu":
        return x * x
    kept: Tensor | None = getattr(_own, "memory", None)
    if kept is None or kept.dtype != x.dtype or kept.numel() < x.numel():
        kept = _own.memory = torch.empty(x.numel(), dtype=x.dtype)
    return torch.mul(x, x, out=kept[: x.numel()].view(x.shape))


def factored_shapes(shape: torch.Size) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Shapes of the row and column averages of a tensor of at least two axes; the last two are factored."""
    return tuple(shape[:-1]), (*shape[:-2], shape[-1])


def factored_ema_(row: Tensor, col: Tensor, square: Tensor, weight: Scalar) -> None:
    """Averages of the row and column means of `square`; `weight` is that of the new one."""
    ema_(row, square.mean(-1), weight)
    ema_(col, square.mean(-2), weight)


def factored_rsqrt(row: Tensor, col: Tensor) -> tuple[Tensor, Tensor]:
    """The two factors of `1 / sqrt(V)` with `V = row col^T / mean(row)`, ready to be multiplied on."""
    return (row / row.mean(-1, keepdim=True)).rsqrt_().unsqueeze(-1), col.rsqrt().unsqueeze(-2)


def rms_clip_(u: Tensor, threshold: Scalar) -> Tensor:
    """`u <- u / max(1, rms(u) / threshold)` for each tensor of a stack."""
    return u.div_((rms(u) / threshold).clamp_(min=1.0))
