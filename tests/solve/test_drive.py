"""The drivers: results, tolerances, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.core.catalogue import problem
from hasten.core.errors import InputError, ProblemError
from hasten.core.kinds.saddle import payoff_operator
from hasten.numerics.projection import project_simplex
from hasten.solve import GradientDescent, minimize, saddle_point, solve


def bowl(x: torch.Tensor, centre: float = 1.0) -> torch.Tensor:
    return (x - centre).square().sum() / 2 + (x - centre).pow(4).sum() / 4


def test_result_reads_like_scipys() -> None:
    result = minimize(bowl, np.array([3.0, -1.0]), tol=1e-9)
    assert result.success
    assert (result.status, result.message) == (0, "the tolerance was met")
    np.testing.assert_allclose(result.x.numpy(), [1.0, 1.0], atol=1e-9)
    assert result.fun == pytest.approx(0.0, abs=1e-15)
    assert float(result.jac.abs().max()) <= 1e-9
    assert result.history.steps[-1] == result.nit
    assert result.history.metric[-1] <= 1e-9 < result.history.metric[-2]


def test_extra_arguments_reach_the_function_and_its_derivatives() -> None:
    result = minimize(bowl, [0.0], (2.0,), jac=lambda x, c: (x - c) + (x - c) ** 3, tol=1e-10)
    assert float(result.x) == pytest.approx(2.0)


def test_step_limit() -> None:
    result = minimize(bowl, [9.0], method="gradient-descent", max_iter=2, tol=1e-12)
    assert (result.success, result.status, result.nit) == (False, 1, 2)


def test_callback_stops() -> None:
    seen = []
    result = minimize(bowl, [9.0], method="gradient-descent", callback=lambda x: seen.append(x) or len(seen) == 3)
    assert (result.success, result.status, result.nit) == (False, 2, 3)


def test_gradients_taken_to_measure_are_not_taken_twice() -> None:
    calls = []

    def slope(x: torch.Tensor) -> torch.Tensor:
        calls.append(1)
        return x

    result = minimize(lambda x: x.square().sum() / 2, [1.0], jac=slope, method="gradient-descent", lr=0.5, tol=1e-3)
    assert result.njev == result.nit
    assert len(calls) <= result.nit + 2


@pytest.mark.parametrize("x0", [[1, 2], np.array([1, 2]), torch.tensor([1]), [True], [1j], "start", None])
def test_starts_that_are_not_floats(x0: object) -> None:
    with pytest.raises(InputError, match="x0"):
        minimize(bowl, x0)


def test_float32_stays() -> None:
    result = minimize(bowl, np.array([3.0], dtype=np.float32), tol=1e-4)
    assert result.success
    assert result.x.dtype == torch.float32


@pytest.mark.parametrize("method", ["universal-newton", "gradient-descent", "fista"])
def test_values_that_are_not_finite_have_status_minus_one(method: str) -> None:
    assert minimize(bowl, [float("nan")], method=method).status == -1
    assert minimize(lambda x: torch.sqrt(x).sum(), [-1.0], method=method).status == -1


def test_errors_of_the_users_function_come_through() -> None:
    def broken(x: torch.Tensor) -> torch.Tensor:
        raise KeyError("mine")

    with pytest.raises((KeyError, ProblemError), match="mine"):
        minimize(broken, [1.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"method": "newtonn"}, "Did you mean"),
        ({"sigma": 1.0}, "sigma0"),
        ({"method": GradientDescent(), "lr": 0.1}, "when making GradientDescent"),
        ({"tol": -1.0}, "tol"),
        ({"max_iter": 0}, "max_iter"),
        ({"prox": lambda v, t: v}, "go together"),
        ({"method": "sinkhorn"}, "serves transport"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(InputError, match=message):
        minimize(bowl, [1.0], **arguments)


def test_solve_a_ready_problem_with_its_own_target() -> None:
    result = solve(problem("quadratic:dim=5,cond=10"), "nesterov")
    assert result.success
    assert result.fun <= 1e-6


def test_lasso_by_hand_is_soft_thresholding() -> None:
    b = torch.tensor([3.0, 0.2, -1.5], dtype=torch.float64)
    result = minimize(
        lambda x: (x - b).square().sum() / 2,
        torch.zeros(3, dtype=torch.float64),
        method="fista",
        nonsmooth=lambda x: 0.5 * x.abs().sum(),
        prox=lambda v, t: torch.sign(v) * (v.abs() - 0.5 * t).clamp_min(0),
    )
    assert result.success
    torch.testing.assert_close(result.x, torch.tensor([2.5, 0.0, -1.0], dtype=torch.float64))


def test_saddle_point_of_a_payoff() -> None:
    payoff = lambda x, y: x @ x / 2 + 2 * (x * y).sum() - y @ y / 2 - x[0]  # noqa: E731
    result = saddle_point(payoff_operator(payoff, (2, 2)), np.ones(4), "extragradient", lipschitz=2.3)
    assert result.success
    np.testing.assert_allclose(result.x.numpy(), [0.2, 0.0, 0.4, 0.0], atol=1e-5)
    assert result.njev == 2 * result.nit


def test_rock_paper_scissors() -> None:
    matrix = torch.tensor([[0.0, 1, -1], [-1, 0, 1], [1, -1, 0]], dtype=torch.float64)
    result = saddle_point(
        lambda z: torch.cat((matrix @ z[3:], -matrix.T @ z[:3])),
        [1.0, 0, 0, 0, 1.0, 0],
        "extragradient",
        projection=lambda z: torch.cat((project_simplex(z[:3]), project_simplex(z[3:]))),
        lr=0.4,
    )
    assert result.success
    np.testing.assert_allclose(result.x.numpy(), np.full(6, 1 / 3), atol=1e-5)


def test_the_step_needs_a_constant() -> None:
    with pytest.raises(InputError, match="give lr"):
        saddle_point(lambda z: z, [1.0])
