"""In-place pieces that update rules are written with, for tensors and for scalars that may be 0-dim tensors.

On the eager backend per-step scalars are Python floats and each piece is one or two fused calls of ATen; in a
compiled step they are 0-dim tensors, and each piece is plain arithmetic that the compiler fuses into one loop. What is
near 1, as a decay rate is, should come as its distance from 1: in single precision 1 - 0.9999 is off by 1e-4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Scalar = float | Tensor


def ema_(average: Tensor, x: Tensor, weight: Scalar) -> Tensor:
    """`average <- (1 - weight) * average + weight * x`; `weight` is 1 - beta."""
    if isinstance(weight, Tensor):
        return average.add_((x - average) * weight)
    return average.lerp_(x, weight)


def mix(average: Tensor, x: Tensor, weight: Scalar) -> Tensor:
    """`(1 - weight) * average + weight * x`, as a new tensor."""
    return average + (x - average) * weight if isinstance(weight, Tensor) else torch.lerp(average, x, weight)


def ema_square_(average: Tensor, x: Tensor, weight: Scalar, plus: Scalar | None = None) -> Tensor:
    """`average <- (1 - weight) * average + weight * x^2 + plus`; `weight` is 1 - beta."""
    if isinstance(weight, Tensor):
        average.add_((x * x - average) * weight)
        return average if plus is None else average.add_(plus)
    if plus is None:
        return average.mul_(1 - weight).addcmul_(x, x, value=weight)
    fresh = torch.addcmul(torch.as_tensor(plus, dtype=x.dtype, device=x.device), x, x, value=weight)
    return torch.add(fresh, average, alpha=1 - weight, out=average)


def axpy_(y: Tensor, a: Scalar, x: Tensor) -> Tensor:
    """`y <- y + a * x`."""
    if isinstance(a, Tensor):
        return y.add_(a * x)
    return y.add_(x, alpha=a)


def axpy(y: Tensor, a: Scalar, x: Tensor) -> Tensor:
    """`y + a * x`, as a new tensor."""
    return y + a * x if isinstance(a, Tensor) else torch.add(y, x, alpha=a)


def add_ratio_(y: Tensor, a: Scalar, numerator: Tensor, denominator: Tensor) -> Tensor:
    """`y <- y + a * numerator / denominator`."""
    if isinstance(a, Tensor):
        return y.add_(a * numerator / denominator)
    return y.addcdiv_(numerator, denominator, value=a)


def floor_(x: Tensor, low: Scalar) -> Tensor:
    """`x <- max(x, low)`."""
    return x.clamp_(min=low)  # type: ignore[arg-type]


def clip_(x: Tensor, bound: Scalar) -> Tensor:
    """`x <- min(max(x, -bound), bound)`."""
    return x.clamp_(-bound, bound)  # type: ignore[arg-type]


def maximum_(x: Tensor, y: Tensor) -> Tensor:
    """`x <- max(x, y)`."""
    return x.copy_(torch.maximum(x, y)) if torch.compiler.is_compiling() else torch.maximum(x, y, out=x)


def rms(x: Tensor) -> Tensor:
    """Root mean square of each tensor of a stack (B, ...), shaped (B, 1, ...)."""
    flat = x.flatten(1) if x.ndim > 1 else x.unsqueeze(1)
    norm = torch.linalg.vector_norm(flat, dim=1) * flat.shape[1] ** -0.5
    return norm.view(-1, *[1] * (x.ndim - 1))


def rectification(beta2: float, t: int) -> float | None:
    """RAdam's factor for the variance of the second moment at step `t`, times `sqrt(1 - beta2^t)`.

    With it the step is `lr / (1 - beta1^t) * factor * m / sqrt(v)`. None while the variance has no estimate yet.
    """
    decayed = beta2**t
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * decayed / (1 - decayed)
    if length < 5:
        return None
    variance = (length - 4) / (longest - 4) * (length - 2) / length * longest / (longest - 2)
    return math.sqrt((1 - decayed) * variance)
