"""Newton's method with an explicit step size that makes it converge from anywhere: root-Newton and its field."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal, Real
from hasten.core.errors import InputError
from hasten.core.kinds.minimise import Minimisation
from hasten.numerics.linear import cholesky, cholesky_solve
from hasten.solve.base import Solver, finite, require_smooth, solver, start

_PAPER = "Damped Newton Method with Near-Optimal Global O(k^-3) Convergence Rate"
_AUTHORS = "S. Hanzely, F. Abdukhakimov, M. Takac"
_COST = "one Hessian, one Cholesky factorisation (d^3/3) and one gradient per step; d^2 memory"


@dataclass
class NewtonState:
    """Where a damped Newton method stands.

    Attributes:
        x: the point.
        gradient: gradient there.
        sigma: damping constant carried by `UniversalNewton`.
        finished: no further step changes x: the accuracy of the arithmetic is reached.
    """

    x: Tensor
    gradient: Tensor
    sigma: float = math.nan
    finished: bool = False


@dataclass(frozen=True)
class Direction:
    """The Newton direction `n = H^-1 g` at x, the decrement `G = sqrt(g.n)` and the factor of H."""

    x: Tensor
    n: Tensor
    decrement: float
    factor: Tensor

    def point(self, alpha: float) -> Tensor:
        """`x - alpha n`."""
        return self.x - alpha * self.n.reshape(self.x.shape)

    def dual(self, gradient: Tensor) -> float:
        """`g' H^-1 g` of another gradient g."""
        flat = gradient.reshape(-1)
        return float(torch.dot(flat, cholesky_solve(self.factor, flat)))


class DampedNewton(Solver[Minimisation, NewtonState]):
    """`x <- x - alpha H^-1 g`; a subclass chooses alpha in `damp`.

    Raises (in `step`):
        NotConvexError: the Hessian is singular or indefinite; the step is not taken.
        DivergedError: an oracle returned something that is not finite.
    """

    def init(self, problem: Minimisation, generator: torch.Generator) -> NewtonState:
        require_smooth(problem, self.card)
        x = start(problem.x0)
        return NewtonState(x, finite("the gradient", problem.gradient(x)))

    def step(self, problem: Minimisation, state: NewtonState) -> NewtonState:
        g = state.gradient.reshape(-1)
        if not bool(g.any()):
            return replace(state, finished=True)
        hessian = finite("the Hessian", problem.hessian(state.x)).reshape(len(g), len(g))
        factor = cholesky(hessian)
        n = cholesky_solve(factor, g)
        decrement = math.sqrt(max(float(torch.dot(g, n)), 0.0))
        if decrement == 0.0:
            return replace(state, finished=True)
        return self.damp(problem, state, Direction(state.x, n, decrement, factor))

    def done(self, state: NewtonState) -> bool:
        return state.finished

    @abstractmethod
    def damp(self, problem: Minimisation, state: NewtonState, direction: Direction) -> NewtonState:
        """The state after a step along `direction`."""

    @staticmethod
    def move(problem: Minimisation, state: NewtonState, direction: Direction, alpha: float) -> NewtonState:
        """The state after the step `alpha`."""
        x = finite("x", direction.point(alpha))
        if torch.equal(x, state.x):
            return replace(state, finished=True)
        return replace(state, x=x, gradient=finite("the gradient", problem.gradient(x)))


@solver(
    Card(
        name="newton",
        family="solve",
        title="Newton's method",
        authors="I. Newton, J. Raphson",
        year=1690,
        summary="Steps to the minimum of the local quadratic model.",
        cost=_COST,
        when="The start is close to the minimum: nothing converges faster there, and nothing protects it elsewhere.",
        kinds=("minimise",),
        needs=("hessian",),
        search_space={"lr": Real(0.1, 1.0)},
        use='from hasten.solve import minimize\n\nresult = minimize(fun, x0, method="newton"{hyper})',
    )
)
@dataclass(frozen=True)
class Newton(DampedNewton):
    """Newton's method with a constant step: `x <- x - lr H^-1 g`.

    Args:
        lr: step in (0, 1]; 1 is the undamped method.
    """

    lr: float = 1.0

    def __post_init__(self) -> None:
        check.real("lr", self.lr, 0.0, 1.0, open_low=True)

    def damp(self, problem: Minimisation, state: NewtonState, direction: Direction) -> NewtonState:
        return self.move(problem, state, direction, self.lr)


@solver(
    Card(
        name="armijo-newton",
        family="solve",
        title="Minimization of functions having Lipschitz continuous first partial derivatives",
        authors="L. Armijo",
        year=1966,
        summary="Newton's direction with a backtracking search for sufficient decrease of the objective.",
        cost=_COST + "; one value per trial",
        when="The usual safe choice on smooth strictly convex functions whose values are cheap and exact.",
        kinds=("minimise",),
        needs=("hessian",),
        search_space={"shrink": Real(0.2, 0.8)},
        use='from hasten.solve import minimize\n\nresult = minimize(fun, x0, method="armijo-newton"{hyper})',
    )
)
@dataclass(frozen=True)
class ArmijoNewton(DampedNewton):
    """Newton's method with backtracking: `alpha = shrink^j` for the least j with `f(x - alpha n) <= f - c alpha G^2`.

    Args:
        c: share of the linear decrease that is asked for, in (0, 1/2).
        shrink: factor between trials, in (0, 1).
        max_backtrack: most trials; the solver is done when none of them decreases f.
    """

    c: float = 1e-4
    shrink: float = 0.5
    max_backtrack: int = 60

    def __post_init__(self) -> None:
        check.real("c", self.c, 0.0, 0.5, open_low=True, open_high=True)
        check.real("shrink", self.shrink, 0.0, 1.0, open_low=True, open_high=True)
        check.integer("max_backtrack", self.max_backtrack, 1)

    def damp(self, problem: Minimisation, state: NewtonState, direction: Direction) -> NewtonState:
        value, alpha = float(finite("the objective", problem.value(state.x))), 1.0
        slack = 4 * torch.finfo(state.x.dtype).eps * abs(value)
        for _ in range(self.max_backtrack):
            if float(problem.value(direction.point(alpha))) <= value - self.c * alpha * direction.decrement**2 + slack:
                return self.move(problem, state, direction, alpha)
            alpha *= self.shrink
        return replace(state, finished=True)


@solver(
    Card(
        name="aicn",
        family="solve",
        title="A Damped Newton Method Achieves Global O(1/k^2) and Local Quadratic Convergence Rate",
        authors="S. Hanzely, D. Kamzolov, D. Pasechnyuk, A. Gasnikov, P. Richtarik, M. Takac",
        year=2022,
        arxiv="2211.00140",
        summary="Newton's method with the step size that minimises an affine-invariant cubic model.",
        cost=_COST,
        when="The semi-strong self-concordance constant of the function is known.",
        kinds=("minimise",),
        needs=("hessian",),
        search_space={"L": LogReal(1e-2, 1e4)},
        use='from hasten.solve import minimize\n\nresult = minimize(fun, x0, method="aicn"{hyper})',
    )
)
@dataclass(frozen=True)
class AICN(DampedNewton):
    """Affine-invariant cubic Newton: `alpha = (sqrt(1 + 2 L G) - 1) / (L G)`.

    Args:
        L: semi-strong self-concordance constant, > 0.
    """

    L: float = 1.0

    def __post_init__(self) -> None:
        check.positive("L", self.L)

    def damp(self, problem: Minimisation, state: NewtonState, direction: Direction) -> NewtonState:
        alpha = 2.0 / (math.sqrt(1.0 + 2.0 * self.L * direction.decrement) + 1.0)
        return self.move(problem, state, direction, alpha)


@solver(
    Card(
        name="root-newton",
        family="solve",
        title=_PAPER,
        authors=_AUTHORS,
        year=2024,
        paper_id=53,
        summary="Newton's method with an explicit step size that attains the rate O(k^-3) on convex functions.",
        cost=_COST,
        when="The constants of the function's third or fourth derivative are known; else take universal-newton.",
        kinds=("minimise",),
        needs=("hessian",),
        search_space={"q": Choice(2.0, 3.0, 4.0), "M": LogReal(1e-2, 1e4)},
        use='from hasten.solve import minimize\n\nresult = minimize(fun, x0, method="root-newton"{hyper})',
    )
)
@dataclass(frozen=True)
class RootNewton(DampedNewton):
    """Root-Newton: `theta = (9M)^(1/(q-1)) G^((q-2)/(q-1))`, `alpha = 1/(1 + theta)`, `x <- x - alpha H^-1 g`.

    G is the Newton decrement `sqrt(g' H^-1 g)`. For convex f with Holder-continuous second (q <= 3) or third
    derivative the rate is O(k^-(q-1)): k^-3 at q = 4. No subproblem and no search; the local rate is superlinear.

    Args:
        q: smoothness order in [2, 4]: 2 or 3 derivatives plus the Holder exponent of the last one.
        M: its constant in the local norms, > 0.
    """

    q: float = 3.0
    M: float = 1.0

    def __post_init__(self) -> None:
        check.real("q", self.q, 2.0, 4.0)
        check.positive("M", self.M)

    def damp(self, problem: Minimisation, state: NewtonState, direction: Direction) -> NewtonState:
        power = 1.0 / (self.q - 1.0)
        theta = (9.0 * self.M) ** power * direction.decrement ** ((self.q - 2.0) * power)
        return self.move(problem, state, direction, 1.0 / (1.0 + theta))


@solver(
    Card(
        name="universal-newton",
        family="solve",
        title=_PAPER,
        authors=_AUTHORS,
        year=2024,
        paper_id=53,
        summary="Root-Newton that finds its damping by a search on gradients, with no constant of the function.",
        cost=_COST + "; each further trial one gradient and one triangular solve (2 d^2)",
        when="Smooth strictly convex functions up to a few thousand variables, from any start.",
        kinds=("minimise",),
        needs=("hessian",),
        search_space={"sigma0": LogReal(1e-3, 1e3), "c": Real(1.5, 4.0)},
        use='from hasten.solve import minimize\n\nresult = minimize(fun, x0, method="universal-newton"{hyper})',
    )
)
@dataclass(frozen=True)
class UniversalNewton(DampedNewton):
    """Universal Newton: for j = 0, 1, ... `theta = c^j sigma G^beta`, `alpha = 1/(1 + theta)`, `w = x - alpha n`.

    The first trial with `g(w).n >= g(w)' H^-1 g(w) / (2 alpha theta)` is taken and sigma becomes `c^(j-1) sigma`,
    so that the damping may fall by c in every step. Two trials per step on average.

    Args:
        beta: exponent of the decrement, in [0, 1]; 2/3 is `(q-2)/(q-1)` at the highest order q = 4.
        sigma0: first damping constant, > 0; its size hardly matters.
        c: factor of the search, > 1.
        max_backtrack: most trials per step; the solver is done when none is accepted.
    """

    beta: float = 2.0 / 3.0
    sigma0: float = 1.0
    c: float = 2.0
    max_backtrack: int = 100

    def __post_init__(self) -> None:
        check.real("beta", self.beta, 0.0, 1.0)
        check.positive("sigma0", self.sigma0)
        if not check.real("c", self.c) > 1:
            raise InputError(f"c must be above 1 (at {self.c!r} the search would never change the step)")
        check.integer("max_backtrack", self.max_backtrack, 1)

    def init(self, problem: Minimisation, generator: torch.Generator) -> NewtonState:
        return replace(super().init(problem, generator), sigma=self.sigma0)

    def damp(self, problem: Minimisation, state: NewtonState, direction: Direction) -> NewtonState:
        sigma = state.sigma
        for _ in range(self.max_backtrack):
            theta = sigma * direction.decrement**self.beta
            alpha = 1.0 / (1.0 + theta)
            w = direction.point(alpha)
            if torch.equal(w, state.x):
                break
            g = problem.gradient(w)
            gain = float(torch.dot(g.reshape(-1), direction.n))
            if 2.0 * alpha * theta * gain >= direction.dual(g):
                return NewtonState(w, finite("the gradient", g), sigma / self.c)
            sigma *= self.c
        return replace(state, finished=True)
