"""Gradient and proximal-gradient methods, plain and accelerated: the field that faster methods are measured in."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.kinds.minimise import Minimisation
from hasten.solve.base import Solver, finite, require_smooth, solver, start


@dataclass
class GradientState:
    """Where a gradient method stands.

    Attributes:
        x: the answer.
        last: the answer before.
        lr: step size of the last step.
        momentum: t in the momentum factor `(t - 1)/t+`.
        finished: no step decreases the objective any more.
    """

    x: Tensor
    last: Tensor
    lr: float
    momentum: float = 1.0
    finished: bool = False


@dataclass(frozen=True)
class GradientMethod(Solver[Minimisation, GradientState]):
    """One loop for four methods: extrapolate if accelerated, step along the gradient, apply the prox if composite.

    Args:
        lr: step size, > 0; found by backtracking if not given: it is halved until
            `f(x+) <= f(y) + <g, x+ - y> + |x+ - y|^2/(2 lr)`, and doubled before each step where nothing is
            accelerated.
    """

    lr: float | None = None
    accelerated: ClassVar[bool] = False
    composite: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if self.lr is not None:
            check.positive("lr", self.lr)

    def init(self, problem: Minimisation, generator: torch.Generator) -> GradientState:
        if not self.composite:
            require_smooth(problem, self.card)
        x = start(problem.x0)
        return GradientState(x, x, float(self.lr) if self.lr is not None else 1.0)

    def step(self, problem: Minimisation, state: GradientState) -> GradientState:
        y, momentum = state.x, state.momentum
        if self.accelerated:
            momentum = (1.0 + math.sqrt(1.0 + 4.0 * state.momentum**2)) / 2.0
            y = state.x + (state.momentum - 1.0) / momentum * (state.x - state.last)
        g = finite("the gradient", problem.gradient(y))
        if self.lr is not None:
            x, lr = self._move(problem, y, g, state.lr), state.lr
        else:
            x, lr = self._backtrack(problem, y, g, state.lr if self.accelerated else 2.0 * state.lr)
        if self.restarts and float(((y - x) * (x - state.x)).sum()) > 0:
            return GradientState(finite("x", x), x, lr)
        return GradientState(finite("x", x), state.x, lr, momentum, finished=lr == 0.0)

    def done(self, state: GradientState) -> bool:
        return state.finished

    @property
    def restarts(self) -> bool:
        """Whether momentum is dropped when it points uphill."""
        return False

    def _move(self, problem: Minimisation, y: Tensor, g: Tensor, lr: float) -> Tensor:
        return problem.prox(y - lr * g, lr) if self.composite else y - lr * g

    def _backtrack(self, problem: Minimisation, y: Tensor, g: Tensor, lr: float) -> tuple[Tensor, float]:
        value = float(finite("the objective", problem.value(y)))
        slack = 10 * torch.finfo(y.dtype).eps * abs(value)
        while lr > torch.finfo(y.dtype).tiny:
            x = self._move(problem, y, g, lr)
            d = x - y
            if float(problem.value(x)) <= value + float((g * d).sum()) + float(d.square().sum()) / (2 * lr) + slack:
                return x, lr
            lr /= 2.0
        return y, 0.0


@solver(
    Card(
        name="gradient-descent",
        family="solve",
        title="Methode generale pour la resolution des systemes d'equations simultanees",
        authors="A.-L. Cauchy",
        year=1847,
        summary="Steps along the negative gradient.",
        cost="one gradient per step; with backtracking about three values",
        when="As the reference that everything else must beat.",
        kinds=("minimise",),
        search_space={"lr": LogReal(1e-4, 10.0)},
        use='from hasten.solve import minimize\n\nresult = minimize(fun, x0, method="gradient-descent"{hyper})',
    )
)
@dataclass(frozen=True)
class GradientDescent(GradientMethod):
    """Gradient descent: `x <- x - lr g(x)`; see `GradientMethod` for lr. lr at most 1/L is safe, 2/L the limit."""


@solver(
    Card(
        name="nesterov",
        family="solve",
        title="A method for solving the convex programming problem with convergence rate O(1/k^2)",
        authors="Y. Nesterov",
        year=1983,
        summary="Gradient steps from an extrapolated point; O(1/k^2) on smooth convex functions.",
        cost="one gradient per step; with backtracking about two values",
        when="Smooth convex functions that are too large for second-order methods.",
        kinds=("minimise",),
        search_space={"lr": LogReal(1e-4, 10.0), "restart": Choice(True, False)},
        use='from hasten.solve import minimize\n\nresult = minimize(fun, x0, method="nesterov"{hyper})',
    )
)
@dataclass(frozen=True)
class Nesterov(GradientMethod):
    """Accelerated gradient: `y = x + (t-1)/t+ (x - x_last)`, `x+ = y - lr g(y)`, `t+ = (1 + sqrt(1 + 4t^2))/2`.

    Args:
        lr: see `GradientMethod`.
        restart: drop the momentum when it points uphill (B. O'Donoghue, E. Candes, 2015, arXiv 1204.3982), which
            gives the linear rate on strongly convex functions.
    """

    restart: bool = True
    accelerated: ClassVar[bool] = True

    @property
    def restarts(self) -> bool:
        return self.restart


@solver(
    Card(
        name="proximal-gradient",
        family="solve",
        title="Signal recovery by proximal forward-backward splitting",
        authors="P. L. Combettes, V. R. Wajs",
        year=2005,
        summary="A gradient step on the smooth part, then the proximal map of the other.",
        cost="one gradient and one prox per step; with backtracking about three values and two proxes",
        when="As the reference on composite objectives such as the lasso.",
        kinds=("minimise",),
        search_space={"lr": LogReal(1e-4, 10.0)},
        use="from hasten.solve import minimize\n\n"
        'result = minimize(fun, x0, nonsmooth=h, prox=prox, method="proximal-gradient"{hyper})',
    )
)
@dataclass(frozen=True)
class ProximalGradient(GradientMethod):
    """Proximal gradient: `x <- prox_{lr h}(x - lr g(x))`; see `GradientMethod` for lr. ISTA where h is the l1 norm."""

    composite: ClassVar[bool] = True


@solver(
    Card(
        name="fista",
        family="solve",
        title="A Fast Iterative Shrinkage-Thresholding Algorithm for Linear Inverse Problems",
        authors="A. Beck, M. Teboulle",
        year=2009,
        summary="Nesterov's acceleration of the proximal gradient method.",
        cost="one gradient and one prox per step; with backtracking about two values",
        when="Convex composite objectives.",
        kinds=("minimise",),
        search_space={"lr": LogReal(1e-4, 10.0), "restart": Choice(True, False)},
        use="from hasten.solve import minimize\n\n"
        'result = minimize(fun, x0, nonsmooth=h, prox=prox, method="fista"{hyper})',
    )
)
@dataclass(frozen=True)
class FISTA(GradientMethod):
    """FISTA: `y = x + (t-1)/t+ (x - x_last)`, `x+ = prox_{lr h}(y - lr g(y))`, `t+ = (1 + sqrt(1 + 4t^2))/2`.

    Args:
        lr: see `GradientMethod`.
        restart: drop the momentum when it points uphill, as in `Nesterov`.
    """

    restart: bool = False
    accelerated: ClassVar[bool] = True
    composite: ClassVar[bool] = True

    @property
    def restarts(self) -> bool:
        return self.restart
