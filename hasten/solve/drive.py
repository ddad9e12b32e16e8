"""Drivers: a solver run to its end on a problem, or straight on functions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import DivergedError, InputError, ProblemError
from hasten.core.kinds.minimise import Minimisation
from hasten.core.kinds.saddle import Saddle
from hasten.core.method import Method
from hasten.core.problem import Instance, Problem
from hasten.core.run import run
from hasten.core.trace import Trace
from hasten.solve.base import Solver, resolve

Callback = Callable[[Any], bool | None]

_MESSAGES = {
    "reached": "the tolerance was met",
    "done": "the method ended: another step would change nothing",
    "budget": "the step limit was reached before the tolerance was met",
    "stopped": "stopped by the callback",
}
_STATUS = {"reached": 0, "done": 0, "budget": 1, "stopped": 2}


@dataclass(frozen=True)
class SolveResult:
    """How a solve ended; the field names are those of `scipy.optimize.OptimizeResult`.

    Attributes:
        x: the answer.
        fun: objective there; the metric where the problem has no objective.
        jac: gradient or operator there, None where there is none.
        nit: steps.
        nfev, njev, nhev: calls of the value, of the gradient or operator, of the Hessian.
        success: whether the tolerance was met.
        status: 0 solved, 1 step limit, 2 stopped by the callback, -1 left the finite numbers.
        message: the same in words.
        calls: calls of every oracle by name.
        history: the trace: metric, calls and seconds after every step.
    """

    x: Any
    fun: float
    jac: Tensor | None
    nit: int
    nfev: int
    njev: int
    nhev: int
    success: bool
    status: int
    message: str
    calls: dict[str, int] = field(repr=False)
    history: Trace = field(repr=False)


class _Watched(Method[Any, Any]):
    """A method whose instance, last state and error stay in reach."""

    def __init__(self, method: Method[Any, Any]) -> None:
        self.card = method.card  # type: ignore[misc]
        self.method = method
        self.instance: Instance | None = None
        self.state: Any = None
        self.error: Exception | None = None

    def init(self, problem: Instance, generator: torch.Generator) -> Any:
        self.instance = problem
        return self._guard(lambda: self.method.init(problem, generator))

    def step(self, problem: Instance, state: Any) -> Any:
        return self._guard(lambda: self.method.step(problem, state))

    def done(self, state: Any) -> bool:
        return self.method.done(state)

    def _guard(self, advance: Callable[[], Any]) -> Any:
        try:
            self.state = advance()
        except Exception as error:
            self.error = error
            raise
        return self.state


def solve(
    problem: Problem,
    method: str | Solver[Any, Any],
    *,
    tol: float | None = None,
    max_iter: int | None = None,
    callback: Callback | None = None,
    seed: int = 0,
    **hyper: Any,
) -> SolveResult:
    """Run a solver on a problem to its end.

    Args:
        problem: a ready problem, or one made by `minimisation`, `saddle`, `transport`, `registration`.
        method: a solver, or the name of one with its hyper-parameters in `hyper`.
        tol: metric at which the problem counts as solved; the problem's own target if not given.
        max_iter: most steps; the problem's budget if not given.
        callback: called with the current answer after every `problem.every` steps; a true answer stops.
        seed: of the problem and of the method.

    Raises:
        InputError: bad arguments.
        NotConvexError: the method needs a positive definite Hessian and met another one.
        Exception: whatever the problem's own functions raise.

    Values that leave the finite numbers do not raise: `status` is -1 and `success` False.
    """
    if tol is not None:
        check.nonnegative("tol", tol)
    if max_iter is not None:
        check.integer("max_iter", max_iter, 1)
    watched = _Watched(resolve(method, hyper))

    def observe(trace: Trace) -> bool:
        return bool(callback(watched.state.x)) if callback is not None and trace.steps[-1] > 0 else False

    try:
        trace = run(watched, problem, seed, budget=max_iter, target=tol, on_record=observe)
    except ProblemError:
        if watched.state is None:
            raise
        trace = Trace(status="diverged", message="the metric is not finite at the start")
    if trace.status == "error" and watched.error is None:
        raise ProblemError(trace.message)
    if watched.error is not None and not isinstance(watched.error, (DivergedError, FloatingPointError)):
        raise watched.error
    message = trace.message or _MESSAGES.get(trace.status, trace.status)
    return _result(watched, trace, message)


def _result(watched: _Watched, trace: Trace, message: str) -> SolveResult:
    instance = watched.instance
    calls = dict(instance.calls) if instance is not None else {}
    x = watched.state.x if watched.state is not None else getattr(instance, "x0", None)
    fun, jac = trace.final, None
    if isinstance(instance, Minimisation) and x is not None:
        fun, jac = float(instance.value(x)), instance.gradient(x)
    elif isinstance(instance, Saddle) and x is not None:
        jac = instance.operator(x)
    return SolveResult(
        x=x,
        fun=fun,
        jac=jac,
        nit=trace.steps[-1] if trace.steps else 0,
        nfev=calls.get("value", 0),
        njev=calls.get("gradient", 0) + calls.get("operator", 0),
        nhev=calls.get("hessian", 0),
        success=_STATUS.get(trace.status) == 0,
        status=_STATUS.get(trace.status, -1),
        message=message,
        calls=calls,
        history=trace,
    )


class _Stationarity(Minimisation):
    """A minimisation measured by its stationarity; the gradient taken for the measurement serves the next step too."""

    _known: tuple[Tensor, Tensor] | None = None

    def gradient(self, x: Tensor) -> Tensor:
        self.calls["gradient"] += 1
        return self._remember(x)

    def metric(self, x: Tensor) -> float:
        gradient = self._remember(x)
        if self._prox is not None:
            gradient = x - self._prox(x - gradient, 1.0)
        size = gradient.abs().max()
        return float(size) if bool(torch.isfinite(gradient).all()) else math.nan

    def _remember(self, x: Tensor) -> Tensor:
        if self._known is None or not torch.equal(self._known[0], x):
            self._known = (x.detach().clone(), self._gradient(x).detach())
        return self._known[1]


def minimize(
    fun: Callable[..., Tensor],
    x0: Any,
    args: tuple[Any, ...] = (),
    method: str | Solver[Any, Any] = "universal-newton",
    *,
    jac: Callable[..., Tensor] | None = None,
    hess: Callable[..., Tensor] | None = None,
    nonsmooth: Callable[[Tensor], Tensor] | None = None,
    prox: Callable[[Tensor, float], Tensor] | None = None,
    tol: float = 1e-8,
    max_iter: int = 1000,
    callback: Callback | None = None,
    seed: int = 0,
    **hyper: Any,
) -> SolveResult:
    """Minimise a function of one tensor.

    Args:
        fun: `fun(x, *args)` -> 0-dim tensor, built of torch operations.
        x0: the start: a float64 or float32 tensor, or an array or list of floats.
        method: a solver, or the name of one with its hyper-parameters in `hyper`; `hasten list methods solve`.
        jac, hess: gradient and Hessian `(x, *args)`; by autograd if not given.
        nonsmooth, prox: a second term h of the objective, and `prox(v, t) = argmin_u h(u) + |u - v|^2/(2t)`.
        tol: largest entry of the gradient (of `x - prox(x - gradient, 1)` with a second term) that counts as solved.
        max_iter: most steps.
        callback: called with x after every step; a true answer stops.

    Raises:
        InputError: bad arguments.
        NotConvexError: a Newton method met a Hessian that is singular or indefinite.
    """
    point = tensor("x0", x0)
    if (nonsmooth is None) != (prox is None):
        raise InputError("nonsmooth and prox go together: give both or neither")

    def bind(function: Callable[..., Tensor] | None) -> Callable[[Tensor], Tensor] | None:
        return None if function is None else lambda x: function(x, *args)

    def build(seed: int) -> _Stationarity:
        return _Stationarity(
            lambda x: fun(x, *args),
            point.clone(),
            gradient=bind(jac),
            hessian=bind(hess),
            nonsmooth=nonsmooth,
            prox=prox,
            generator=torch.Generator().manual_seed(seed),
        )

    problem = Problem("minimize", Minimisation.kind, build, measures="largest gradient entry")
    return solve(problem, method, tol=tol, max_iter=max_iter, callback=callback, seed=seed, **hyper)


def saddle_point(
    operator: Callable[[Tensor], Tensor],
    z0: Any,
    method: str | Solver[Any, Any] = "accelerated-optimistic-gradient",
    *,
    projection: Callable[[Tensor], Tensor] | None = None,
    lipschitz: float | None = None,
    tol: float = 1e-6,
    max_iter: int = 10000,
    callback: Callback | None = None,
    seed: int = 0,
    **hyper: Any,
) -> SolveResult:
    """Find an equilibrium of a monotone game.

    Args:
        operator: F over the stacked players, for `min_x max_y f` the pair `(grad_x f, -grad_y f)`;
            `hasten.core.kinds.saddle.payoff_operator` makes it from f.
        z0: the start: a float64 or float32 vector.
        method: a solver, or the name of one with its hyper-parameters in `hyper`.
        projection: onto the feasible set; None where every z is feasible.
        lipschitz: Lipschitz constant of F, for the default step; else give `lr`.
        tol: natural residual `|z - P(z - F(z))|` that counts as solved.
        max_iter: most steps.
        callback: called with z after every step; a true answer stops.
    """
    point = tensor("z0", z0)

    def build(seed: int) -> Saddle:
        generator = torch.Generator().manual_seed(seed)
        return Saddle(operator, point.clone(), projection=projection, lipschitz=lipschitz, generator=generator)

    problem = Problem("saddle_point", Saddle.kind, build, measures="residual norm")
    return solve(problem, method, tol=tol, max_iter=max_iter, callback=callback, seed=seed, **hyper)


def tensor(name: str, value: Any) -> Tensor:
    """A floating-point tensor from a tensor, an array or a list of floats; arrays and lists become float64.

    Raises:
        InputError: integers, booleans, complex numbers, or nothing that has a shape.
    """
    if not isinstance(value, Tensor):
        array = np.asarray(value)
        value = torch.from_numpy(np.ascontiguousarray(array)) if array.dtype.kind in "fiub" else value
        if isinstance(value, Tensor) and value.is_floating_point() and array.dtype != np.float32:
            value = value.to(torch.float64)
    if not isinstance(value, Tensor) or value.dtype not in (torch.float32, torch.float64):
        got = str(value.dtype) if isinstance(value, Tensor) else type(value).__name__
        raise InputError(f"{name} must hold float64 or float32 numbers, got {got}")
    return value
