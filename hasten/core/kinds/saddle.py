"""Kind `saddle`: games and variational inequalities, given by one operator over all players."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.problem import Instance, Problem

Operator = Callable[[Tensor], Tensor]


class Saddle(Instance):
    """A game: find z with `<F(z), w - z> >= 0` for every feasible w. The answer (`state.x`) is a tensor like `z0`.

    All players' decisions are stacked in one vector z; F stacks the gradients of their own losses, for
    `min_x max_y f(x, y)` that is `(grad_x f, -grad_y f)`. Oracles: `operator` and `projection`.

    Args:
        operator: F, tensor -> tensor of the same shape.
        z0: the start, feasible.
        projection: Euclidean projection onto the feasible set; None where every z is feasible.
        noisy_operator: `(z, generator)` -> unbiased estimate of F(z), drawn by `operator` instead of F.
        lipschitz: Lipschitz constant of F, from which solvers take their default step.
        players: length of each player's block, in order; one block if not given.
        metric: distance from equilibrium, e.g. a duality gap; the natural residual `|z - P(z - F(z))|` if not
            given, which is `|F(z)|` without constraints.
        generator: source of the noise.
    """

    kind = "saddle"

    def __init__(
        self,
        operator: Operator,
        z0: Tensor,
        *,
        projection: Operator | None = None,
        noisy_operator: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        lipschitz: float | None = None,
        players: Sequence[int] | None = None,
        metric: Callable[[Tensor], float] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        self.x0 = z0
        self.lipschitz = lipschitz
        self.players = tuple(players) if players is not None else (z0.numel(),)
        if sum(self.players) != z0.numel():
            raise InputError(f"players: blocks {self.players} must add up to the {z0.numel()} entries of z0")
        self.generator = generator or torch.Generator().manual_seed(0)
        self._operator = operator
        self._noisy = noisy_operator
        self._projection = projection
        self._metric = metric

    def offers(self) -> frozenset[str]:
        return frozenset({"operator"} | ({"projection"} if self._projection else set()))

    def operator(self, z: Tensor) -> Tensor:
        """F at `z`, or an unbiased estimate of it."""
        self.calls["operator"] += 1
        return self._noisy(z, self.generator) if self._noisy else self._operator(z)

    def project(self, z: Tensor) -> Tensor:
        """Nearest feasible point; `z` itself where there are no constraints (not counted then)."""
        if self._projection is None:
            return z
        self.calls["projection"] += 1
        return self._projection(z)

    def split(self, z: Tensor) -> tuple[Tensor, ...]:
        """The players' own blocks of `z`."""
        return torch.split(z, list(self.players))

    def metric(self, x: Tensor) -> float:
        with torch.no_grad():
            if self._metric is not None:
                return float(self._metric(x))
            moved = x - self._operator(x)
            return float((x - (self._projection(moved) if self._projection else moved)).norm())


def payoff_operator(payoff: Callable[[Tensor, Tensor], Tensor], players: tuple[int, int]) -> Operator:
    """F of the game `min_x max_y payoff(x, y)` by autograd, over z = (x, y).

    Args:
        payoff: two vectors -> 0-dim tensor.
        players: lengths of x and y.
    """

    def operator(z: Tensor) -> Tensor:
        x, y = torch.split(z, list(players))
        dx, dy = torch.func.grad(payoff, argnums=(0, 1))(x, y)
        return torch.cat((dx, -dy))

    return operator


def saddle(name: str, operator: Operator, z0: Tensor, **options: Any) -> Problem:
    """A game of your own, from its operator and a start.

    Args:
        operator: F over the stacked players, see `Saddle`; `payoff_operator` makes it from `f(x, y)`.
        z0: the start, a floating-point vector.
        options: fields of `Problem` (`target`, `budget`, ...) and arguments of `Saddle` (`projection`, ...).
    """
    if not isinstance(z0, Tensor) or not z0.is_floating_point() or z0.dim() != 1:
        raise InputError(f"z0 must be a floating-point vector (1-d tensor), got {z0!r}")
    if (lipschitz := options.get("lipschitz")) is not None:
        check.positive("lipschitz", lipschitz)
    fields = {key: options.pop(key) for key in list(options) if key in Problem.__dataclass_fields__}

    def build(seed: int) -> Saddle:
        return Saddle(operator, z0.detach().clone(), generator=torch.Generator().manual_seed(seed), **options)

    fields.setdefault("measures", "distance from equilibrium" if "metric" in options else "residual norm")
    fields.setdefault("baseline", "solve.extragradient")
    return Problem(name=name, kind=Saddle.kind, build=build, **fields)


def duality_gap(matrix: Tensor) -> Callable[[Tensor], float]:
    """The metric `max_v u'Av - min_w w'Ay` of the game `min_x max_y x'Ay` over simplices, at z = (x, y)."""

    def gap(z: Tensor) -> float:
        x, y = torch.split(z, list(matrix.shape))
        value = float((matrix.T @ x).max() - (matrix @ y).min())
        return value if math.isfinite(value) else math.nan

    return gap
