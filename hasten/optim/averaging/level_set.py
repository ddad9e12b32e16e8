"""What teleportations share: ascent along the level set of a loss, by the symmetries of a network."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError

OBJECTIVES = ("grad_norm", "sharpness", "curvature")
RADII = (0.01, 0.03, 0.1)
SUSPICIOUS = 1e-3
"""Relative change of the loss from which on a jump is warned of."""


@dataclass(frozen=True)
class Jump:
    """What a teleportation did.

    Attributes:
        weights, biases: of all layers; no biases if there are none.
        loss: before and after, on the data of the jump.
        grad_norm: norm of the gradient before and after.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    loss: tuple[float, float]
    grad_norm: tuple[float, float]

    @property
    def residual(self) -> float:
        """Change of the loss relative to the loss: what the symmetry should have kept at 0."""
        return abs(self.loss[1] - self.loss[0]) / max(abs(self.loss[0]), 1e-300)


Weights = list[Tensor]
Loss = Callable[[Weights], Tensor]
Move = Callable[[Sequence[Tensor]], Weights]


@dataclass(frozen=True)
class Climb:
    """Ascent of the objective over the group; double precision."""

    lr: float
    steps: int
    objective: str
    sign: int
    cap: float | None

    def __post_init__(self) -> None:
        check.positive("lr", self.lr)
        check.integer("steps", self.steps, 1)
        check.one_of("objective", self.objective, OBJECTIVES)
        check.one_of("sign", self.sign, (1, -1))
        if self.cap is not None:
            check.real("cap", self.cap)

    @torch.enable_grad()
    def __call__(self, params: Weights, count: int, bind: Callable[[Weights], Move], loss: Loss) -> Jump:
        if count < 2:
            raise InputError(f"weights must be of two layers or more, got {count}: one layer has no such symmetry")
        before = _measure(params, loss)
        source = torch.Generator().manual_seed(0)
        for _ in range(self.steps):
            move = bind(params)
            group = [torch.eye(len(w), dtype=w.dtype, device=w.device).requires_grad_() for w in params[: count - 1]]
            value = getattr(self, f"_{self.objective}")(move, group, loss, source)
            if self.cap is not None and float(value.detach()) * self.sign > self.cap * self.sign:
                break
            slopes = torch.autograd.grad(value, group)
            with torch.no_grad():
                group = [g + self.sign * self.lr * slope for g, slope in zip(group, slopes)]
                moved = move(group) if _finite(group) else group
                if not _finite(moved) or not _finite([loss(moved)]):
                    warnings.warn("the jump ran into infinite numbers; lower its rate", stacklevel=4)
                    break
            params = moved
        after = _measure(params, loss)
        jump = Jump(params[:count], params[count:], (before[0], after[0]), (before[1], after[1]))
        if jump.residual > SUSPICIOUS:
            warnings.warn(
                f"teleportation changed the loss on its batch by {jump.residual:.1%}: it is exact only for at "
                "most as many rows as the narrowest hidden layer has units, or a linear activation; take a smaller "
                "batch, fewer steps or a lower rate",
                stacklevel=4,
            )
        return jump

    @staticmethod
    def _grad_norm(move: Move, group: list[Tensor], loss: Loss, source: torch.Generator) -> Tensor:
        moved = [w if w.requires_grad else w.detach().requires_grad_() for w in move(group)]
        grads = torch.autograd.grad(loss(moved), moved, create_graph=True)
        return torch.stack([grad.square().sum() for grad in grads]).sum()

    @staticmethod
    def _sharpness(move: Move, group: list[Tensor], loss: Loss, source: torch.Generator) -> Tensor:
        moved, values = move(group), []
        for radius in RADII:
            drawn = [torch.randn(w.shape, generator=source, dtype=w.dtype).to(w.device) for w in moved]
            norm = math.hypot(*(float(w.norm()) for w in drawn))
            values.append(loss([w + radius / norm * d for w, d in zip(moved, drawn)]))
        return torch.stack(values).mean()

    @staticmethod
    def _curvature(move: Move, group: list[Tensor], loss: Loss, source: torch.Generator) -> Tensor:
        drawn = [torch.randn(g.shape, generator=source, dtype=g.dtype).to(g.device) / len(g) ** 0.5 for g in group]

        def curve(t: Tensor) -> Tensor:
            # exp(t M) to second order, which is all that two derivatives at 0 see.
            moved = move([g + t * (m @ g) + t**2 / 2 * (m @ (m @ g)) for g, m in zip(group, drawn)])
            return torch.cat([w.flatten() for w in moved])

        def velocity(t: Tensor) -> Tensor:
            return torch.func.jvp(curve, (t,), (torch.ones_like(t),))[1]

        start = group[0].new_zeros(())
        v, a = torch.func.jvp(velocity, (start,), (torch.ones_like(start),))[:2]
        area = (v.dot(v) * a.dot(a) - v.dot(a) ** 2).clamp(min=1e-300)
        return area.sqrt() / v.dot(v) ** 1.5


def _finite(tensors: Sequence[Tensor]) -> bool:
    return all(bool(torch.isfinite(tensor).all()) for tensor in tensors)


def _measure(params: Weights, loss: Loss) -> tuple[float, float]:
    leaves = [param.detach().requires_grad_() for param in params]
    value = loss(leaves)
    grads = torch.autograd.grad(value, leaves)
    return float(value.detach()), math.hypot(*(float(grad.norm()) for grad in grads))


def symmetry(params: Weights, hidden: Weights, activations: Sequence[Callable[[Tensor], Tensor]]) -> Move:
    """How the group moves weights (and biases); `hidden` is what goes into the activations, row by row."""
    count = len(hidden) + 1

    def move(group: Sequence[Tensor]) -> Weights:
        weights = list(params)
        for layer, (g, z, act) in enumerate(zip(group, hidden, activations)):
            for place in range(layer, len(params), count):
                weights[place] = g @ weights[place]
            old, new = act(z), act(z @ g.T)
            weights[layer + 1] = weights[layer + 1] @ (torch.linalg.pinv(new) @ (old - new)).T + weights[layer + 1]
        return weights

    return move
