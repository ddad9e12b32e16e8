"""A gradient stream that depends on nothing but the step, for comparison with reference implementations."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

SHAPES = ((3, 2), (4,), ())
STEPS = (1, 2, 10, 100)


def parameters() -> list[nn.Parameter]:
    """A matrix, a vector and a number, float64."""
    made = []
    for place, shape in enumerate(SHAPES):
        count = torch.arange(1, math.prod(shape) + 1, dtype=torch.float64)
        made.append(nn.Parameter(torch.sin(count + place).reshape(shape)))
    return made


def set_gradients(params: Sequence[Tensor], t: int) -> None:
    """The gradients of step t = 1, 2, ..."""
    for place, param in enumerate(params):
        i = torch.arange(param.numel(), dtype=torch.float64)
        param.grad = (torch.sin(0.7 * t + 1.3 * i + place) * (1 + 0.1 * i)).reshape(param.shape).to(param.dtype)


def digest(params: Sequence[Tensor]) -> list[float]:
    """Sum of all entries, and their sum weighted by 1, 2, ..."""
    flat = torch.cat([param.detach().flatten() for param in params])
    return [float(flat.sum()), float((flat * torch.arange(1, len(flat) + 1, dtype=flat.dtype)).sum())]


def digests(params: Sequence[Tensor], step: Callable[[], object], answer: Sequence[Tensor] | None = None) -> list[list]:
    """Digests of the parameters (or of `answer`) after the steps 1, 2, 10 and 100."""
    found = []
    for t in range(1, max(STEPS) + 1):
        set_gradients(params, t)
        step()
        if t in STEPS:
            found.append(digest(params if answer is None else answer))
    return found


class Network(nn.Module):
    """The parameters of the stream as a network."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.ParameterList(parameters())
