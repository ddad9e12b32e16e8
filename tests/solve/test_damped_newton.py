"""The damped Newton methods against their formulas, written down again in NumPy, and against SciPy."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.optimize import minimize as scipy_minimize

import hasten
from hasten.core.catalogue import problem
from hasten.core.errors import InputError, MismatchError
from hasten.core.kinds.minimise import Minimisation
from hasten.numerics.linear import NotConvexError
from hasten.solve import AICN, Newton, RootNewton, Solver, UniversalNewton, minimize

COUPLING = np.random.default_rng(0).standard_normal((5, 5))
CURVATURE = COUPLING @ COUPLING.T / 5 + 0.1 * np.eye(5)
START = np.array([2.0, -1.5, 3.0, 0.5, -2.5])


def quartic(x: torch.Tensor) -> torch.Tensor:
    return x.pow(4).sum() / 4 + x @ torch.from_numpy(CURVATURE).to(x.dtype) @ x / 2 - x[0]


def gradient(x: np.ndarray) -> np.ndarray:
    linear = np.zeros(5)
    linear[0] = 1.0
    return x**3 + CURVATURE @ x - linear


def hessian(x: np.ndarray) -> np.ndarray:
    return 3 * np.diag(x**2) + CURVATURE


def path(solver: Solver, steps: int) -> list[np.ndarray]:
    instance = Minimisation(quartic, torch.from_numpy(START))
    state = solver.init(instance, torch.Generator())
    points = []
    for _ in range(steps):
        state = solver.step(instance, state)
        points.append(state.x.numpy())
    return points


def explicit(alpha, steps: int) -> list[np.ndarray]:
    x, points = START.copy(), []
    for _ in range(steps):
        n = np.linalg.solve(hessian(x), gradient(x))
        x = x - alpha(math.sqrt(gradient(x) @ n)) * n
        points.append(x)
    return points


@pytest.mark.parametrize(
    ("solver", "alpha"),
    [
        (Newton(0.7), lambda G: 0.7),
        (AICN(3.0), lambda G: (math.sqrt(1 + 2 * 3 * G) - 1) / (3 * G)),
        (RootNewton(2.0, 0.5), lambda G: 1 / (1 + 9 * 0.5)),
        (RootNewton(3.0, 2.0), lambda G: 1 / (1 + math.sqrt(18 * G))),
        (RootNewton(4.0, 2.0), lambda G: 1 / (1 + 18 ** (1 / 3) * G ** (2 / 3))),
    ],
    ids=["newton", "aicn", "root-2", "root-3", "root-4"],
)
def test_explicit_steps_follow_the_formula(solver, alpha) -> None:
    np.testing.assert_allclose(path(solver, 12), explicit(alpha, 12), rtol=1e-10, atol=1e-10)


def test_universal_newton_follows_its_search() -> None:
    beta, sigma, c = 2 / 3, 0.05, 1.7
    x, expected = START.copy(), []
    for _ in range(10):
        H = hessian(x)
        n = np.linalg.solve(H, gradient(x))
        G = math.sqrt(gradient(x) @ n)
        for j in range(100):
            theta = c**j * sigma * G**beta
            alpha = 1 / (1 + theta)
            g = gradient(x - alpha * n)
            if g @ n >= g @ np.linalg.solve(H, g) / (2 * alpha * theta):
                break
        x, sigma = x - alpha * n, c ** (j - 1) * sigma
        expected.append(x)
    found = path(UniversalNewton(beta, 0.05, c), 10)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("method", ["newton", "armijo-newton", "aicn", "root-newton", "universal-newton"])
def test_optimum_is_scipys(method: str) -> None:
    value = lambda x: float(quartic(torch.from_numpy(x)))  # noqa: E731
    best = scipy_minimize(value, START, jac=gradient, hess=hessian, method="trust-exact", options={"gtol": 1e-12})
    found = minimize(quartic, START, method=method, tol=1e-11)
    assert found.success
    np.testing.assert_allclose(found.x.numpy(), best.x, atol=1e-8)


def test_oracles_are_counted_as_they_are_called() -> None:
    result = minimize(quartic, START, method="newton", tol=1e-10)
    assert (result.nfev, result.njev, result.nhev) == (0, result.nit + 1, result.nit)
    searched = minimize(quartic, START, method="universal-newton", tol=1e-10)
    assert searched.njev > searched.nhev == searched.nit


def test_a_hessian_that_is_not_positive_definite_is_refused_with_its_eigenvalue() -> None:
    with pytest.raises(NotConvexError, match=r"smallest eigenvalue is -2") as caught:
        minimize(lambda x: x[0] ** 2 - x[1] ** 2, [1.0, 1.0])
    assert caught.value.smallest == pytest.approx(-2)
    with pytest.raises(NotConvexError):
        minimize(lambda x: (x[0] + x[1]) ** 2, [1.0, 1.0])


def test_start_at_the_minimum_is_converged() -> None:
    result = minimize(lambda x: (x * x).sum(), [0.0, 0.0])
    assert result.success
    assert result.nit == 0


def test_runs_to_the_accuracy_of_the_arithmetic_and_stops() -> None:
    result = minimize(quartic, START, tol=0.0, max_iter=200)
    assert result.nit < 60
    assert float(result.jac.abs().max()) < 1e-13


def test_matrix_shaped_variables() -> None:
    result = minimize(lambda x: (x - 2).square().sum() + x.pow(4).sum(), torch.zeros(2, 3, dtype=torch.float64))
    assert result.success
    assert result.x.shape == (2, 3)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: RootNewton(q=1.9), "q"),
        (lambda: RootNewton(q=4.1), "q"),
        (lambda: RootNewton(M=0), "M"),
        (lambda: UniversalNewton(c=1.0), "c must"),
        (lambda: UniversalNewton(sigma0=-1), "sigma0"),
        (lambda: UniversalNewton(max_backtrack=0), "max_backtrack"),
        (lambda: Newton(lr=0), "lr"),
        (lambda: Newton(lr=1.5), "lr"),
        (lambda: AICN(L=float("nan")), "L"),
    ],
)
def test_bad_hyper_parameters(make, name: str) -> None:
    with pytest.raises(InputError, match=name):
        make()


def test_a_nonsmooth_term_is_not_ignored() -> None:
    with pytest.raises(MismatchError, match="nonsmooth"):
        hasten.solve.solve(problem("diabetes-lasso"), "newton")


def test_a_noisy_problem_has_no_hessian() -> None:
    with pytest.raises(MismatchError, match="hessian"):
        hasten.solve.solve(problem("quadratic:noise=0.1"), "universal-newton")
