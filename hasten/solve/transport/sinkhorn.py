"""Entropic optimal transport: Sinkhorn's rounds, and sparse Newton steps after the first of them."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Integer, LogReal
from hasten.core.errors import InputError
from hasten.core.kinds.transport import Transport, transport
from hasten.numerics.linear import conjugate_gradient
from hasten.solve.base import Solver, finite, solver, start
from hasten.solve.drive import SolveResult, solve, tensor


@dataclass
class TransportState:
    """Where a transport solver stands: the potentials x, the steps taken, and the plan at x once it is needed."""

    x: Tensor
    t: int = 0
    plan: Tensor | None = None
    finished: bool = False


@solver(
    Card(
        name="sinkhorn",
        family="solve",
        title="Sinkhorn Distances: Lightspeed Computation of Optimal Transport",
        authors="M. Cuturi",
        year=2013,
        arxiv="1306.0895",
        summary="Rescales the plan's rows and columns in turn, in the log domain.",
        cost="O(n m) per round",
        when="Strong regularisation, or rough accuracy.",
        kinds=("transport",),
        use="from hasten.solve import sinkhorn\n\nplan, log = sinkhorn(a, b, M, reg{hyper})",
    )
)
@dataclass(frozen=True)
class Sinkhorn(Solver[Transport, TransportState]):
    """Sinkhorn in the log domain: `f <- reg (log a - lse((g - M)/reg))`, then `g <- reg (log b - lse((f - M)/reg))`."""

    def init(self, problem: Transport, generator: torch.Generator) -> TransportState:
        return TransportState(start(problem.x0))

    def step(self, problem: Transport, state: TransportState) -> TransportState:
        return TransportState(finite("the potentials", problem.sinkhorn(state.x)), state.t + 1)


@solver(
    Card(
        name="sinkhorn-newton-sparse",
        family="solve",
        title="Accelerating Sinkhorn Algorithm with Sparse Newton Iterations",
        authors="X. Tang, M. Shavlovsky, H. Rahmanian, E. Tardini, K. K. Thekumparampil, T. Xiao, L. Ying",
        year=2024,
        arxiv="2401.12253",
        paper_id=118,
        summary="A few Sinkhorn rounds, then Newton steps on the dual with a sparsified Hessian.",
        cost="O(n m) per step to form the plan, plus the kept entries per product of a conjugate-gradient solve",
        when="Weak regularisation and high accuracy, where Sinkhorn takes thousands of rounds.",
        kinds=("transport",),
        search_space={"n_sinkhorn": Integer(5, 100, log=True), "density": LogReal(1e-2, 0.5)},
        use="from hasten.solve import sinkhorn_newton\n\nplan, log = sinkhorn_newton(a, b, M, reg{hyper})",
    )
)
@dataclass(frozen=True)
class SinkhornNewtonSparse(Solver[Transport, TransportState]):
    """Sinkhorn-Newton-Sparse: maximise `D(f, g) = a.f + b.g - reg sum P`, `P_ij = exp((f_i + g_j - M_ij)/reg)`.

    The first `n_sinkhorn` steps are Sinkhorn rounds. Then `grad = (a - P1, b - P'1)` and
    `H = [[diag(P1), P_s], [P_s', diag(P'1)]]`, where P_s keeps the largest entries of P:

        (H/reg + v v') d = grad   by conjugate gradients,  v = (1, -1)/sqrt(n + m)
        (f, g) += 2^-j d          for the least j that does not lower D

    v removes the null direction of H. A step whose linear solve or search fails is a Sinkhorn round instead.

    Args:
        n_sinkhorn: rounds before the first Newton step, at least 1.
        density: share of P's entries that is kept, in (0, 1]; `15 / max(n, m)` (at most 1) if not given. Too low
            a density leaves the Newton steps slow.
        cg_tol: relative residual of the linear solves.
        max_halvings: most halvings of a step.
    """

    n_sinkhorn: int = 20
    density: float | None = None
    cg_tol: float = 1e-8
    max_halvings: int = 40

    def __post_init__(self) -> None:
        check.integer("n_sinkhorn", self.n_sinkhorn, 1)
        if self.density is not None:
            check.real("density", self.density, 0.0, 1.0, open_low=True)
        check.real("cg_tol", self.cg_tol, 0.0, 1.0, open_low=True, open_high=True)
        check.integer("max_halvings", self.max_halvings, 1)

    def init(self, problem: Transport, generator: torch.Generator) -> TransportState:
        return TransportState(start(problem.x0))

    def step(self, problem: Transport, state: TransportState) -> TransportState:
        if state.t < self.n_sinkhorn:
            return self._round(problem, state)
        plan = state.plan if state.plan is not None else problem.plan(state.x)
        gradient = finite("the plan", torch.cat((problem.a - plan.sum(1), problem.b - plan.sum(0))))
        if not bool(gradient.any()):
            return TransportState(state.x, state.t + 1, plan, finished=True)
        direction = self._direction(problem, plan, gradient)
        if direction is None:
            return self._round(problem, state)
        value, t = _dual(problem, state.x, plan), 1.0
        slack = 10 * torch.finfo(plan.dtype).eps * (abs(value) + problem.reg)
        for _ in range(self.max_halvings):
            x = state.x + t * direction
            trial = problem.plan(x)
            if _dual(problem, x, trial) >= value - slack:
                return TransportState(x, state.t + 1, trial)
            t /= 2.0
        return self._round(problem, state)

    def done(self, state: TransportState) -> bool:
        return state.finished

    def _direction(self, problem: Transport, plan: Tensor, gradient: Tensor) -> Tensor | None:
        """Newton's direction; None where the sparsified Hessian is singular to working accuracy."""
        density: float = self.density if self.density is not None else min(1.0, 15.0 / max(plan.shape))
        hessian, diagonal = problem.hessian(plan, math.ceil(density * plan.numel()))
        n, m = plan.shape
        null: Tensor = torch.cat((plan.new_ones(n), -plan.new_ones(m))) / math.sqrt(n + m)

        def product(v: Tensor) -> Tensor:
            return hessian(v) / problem.reg + null * torch.dot(null, v)

        found = conjugate_gradient(product, gradient, diagonal=diagonal / problem.reg + null.square(), tol=self.cg_tol)
        return found.x if found.converged and bool(torch.isfinite(found.x).all()) else None

    @staticmethod
    def _round(problem: Transport, state: TransportState) -> TransportState:
        return TransportState(finite("the potentials", problem.sinkhorn(state.x)), state.t + 1)


def _dual(problem: Transport, x: Tensor, plan: Tensor) -> float:
    f, g = problem.split(x)
    return float(torch.dot(problem.a, f) + torch.dot(problem.b, g) - problem.reg * plan.sum())


def sinkhorn_newton(
    a: Any,
    b: Any,
    M: Any,
    reg: float,
    *,
    tol: float = 1e-9,
    max_iter: int = 100,
    n_sinkhorn: int = 20,
    density: float | None = None,
    cg_tol: float = 1e-8,
) -> tuple[Any, dict[str, Any]]:
    """Entropic transport plan by Sinkhorn-Newton-Sparse; the arguments are in the order of POT's `ot.sinkhorn`.

    Args:
        a: (n,) source masses; an empty one means uniform. Arrays or tensors, float64 or float32.
        b: (m,) target masses of the same total; an empty one means uniform.
        M: (n, m) costs.
        reg: strength of the entropy, > 0, in the unit of M.
        tol: marginal error `|P1 - a|_1 + |P'1 - b|_1` that counts as solved.
        max_iter: most steps, Sinkhorn rounds included.
        n_sinkhorn, density, cg_tol: see `SinkhornNewtonSparse`.

    Returns:
        The (n, m) plan, of M's type, and a log: `u`, `v` (potentials f and g; 0 where a mass is 0), `err`,
        `niter`, `cost` (`<P, M>`), `converged` and `result` (the full `SolveResult`).

    Raises:
        InputError: reg <= 0, negative or unequal masses, density outside (0, 1], shapes that do not fit.
    """
    method = SinkhornNewtonSparse(n_sinkhorn, density, cg_tol)
    return _plan_and_log(a, b, M, reg, method, tol, max_iter)


def sinkhorn(
    a: Any, b: Any, M: Any, reg: float, *, tol: float = 1e-9, max_iter: int = 10000
) -> tuple[Any, dict[str, Any]]:
    """Entropic transport plan by Sinkhorn's rounds in the log domain; see `sinkhorn_newton`.

    The marginal error is looked at every tenth round.
    """
    return _plan_and_log(a, b, M, reg, Sinkhorn(), tol, max_iter)


def _plan_and_log(
    a: Any, b: Any, M: Any, reg: float, method: Solver[Any, Any], tol: float, max_iter: int
) -> tuple[Any, dict[str, Any]]:
    cost = tensor("M", M)
    if cost.dim() != 2 or 0 in cost.shape:
        raise InputError(f"M must be a matrix of costs, got shape {tuple(cost.shape)}")
    masses = _masses("a", a, cost.shape[0], cost), _masses("b", b, cost.shape[1], cost)
    instance = Transport(masses[0], masses[1], cost, reg)
    every = 10 if isinstance(method, Sinkhorn) else 1
    problem = transport("transport", lambda seed: (masses[0], masses[1], cost), reg, every=every)
    result: SolveResult = solve(problem, method, tol=tol, max_iter=max_iter)
    plan = instance.coupling(result.x)
    potentials = [cost.new_zeros(len(mass)) for mass in masses]
    for potential, index, part in zip(potentials, (instance.rows, instance.columns), instance.split(result.x)):
        potential[index] = part
    give = (lambda value: value.numpy()) if not isinstance(M, Tensor) else (lambda value: value)
    log = {
        "u": give(potentials[0]),
        "v": give(potentials[1]),
        "err": result.fun,
        "niter": result.nit,
        "cost": float((plan * cost).sum()),
        "converged": result.success,
        "result": result,
    }
    return give(plan), log


def _masses(name: str, value: Any, count: int, cost: Tensor) -> Tensor:
    if len(value) == 0:
        return torch.full((count,), 1.0 / count, dtype=cost.dtype, device=cost.device)
    return tensor(name, value if isinstance(value, Tensor) else np.asarray(value)).to(cost)
