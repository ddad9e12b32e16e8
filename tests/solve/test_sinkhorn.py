"""Entropic transport against POT's figures and Sinkhorn's own fixed point."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.kinds.transport import Transport
from hasten.core.run import run
from hasten.solve import Sinkhorn, SinkhornNewtonSparse, sinkhorn, sinkhorn_newton

ROW, COLUMN = np.arange(6)[:, None], np.arange(5)[None, :]
COST = ((ROW**2 + 3 * COLUMN**2 + 2 * ROW * COLUMN) % 7) / 7 + np.sin(ROW + 2 * COLUMN) ** 2 / 5
A, B = np.arange(1, 7) / 21, np.array([3, 1, 4, 1, 5]) / 14

# POT 0.9.7.post1: ot.sinkhorn(A, B, COST, 0.02, method="sinkhorn_log", numItermax=1000000, stopThr=1e-15).
POT_COST = 0.31640700442677394
POT_FIRST = [
    4.760681341997879e-02,
    1.2234199068507863e-05,
    3.196828905167032e-16,
    4.90652010881463e-19,
    5.193358871e-20,
]
POT_LAST = [
    9.630269100659384e-19,
    3.24894149696561e-04,
    2.3486491647322454e-02,
    3.140221294916469e-20,
    0.2619028999172667,
]


@pytest.mark.parametrize("front", [sinkhorn, sinkhorn_newton])
def test_plan_and_cost_are_pots(front) -> None:
    plan, log = front(A, B, COST, 0.02, tol=1e-12)
    assert log["converged"]
    assert isinstance(plan, np.ndarray)
    np.testing.assert_allclose(plan[0], POT_FIRST, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(plan[5], POT_LAST, rtol=1e-8, atol=1e-12)
    assert log["cost"] == pytest.approx(POT_COST, abs=1e-10)
    np.testing.assert_allclose(np.exp((log["u"][:, None] + log["v"] - COST) / 0.02), plan, rtol=1e-12)


def test_newton_and_many_rounds_agree_on_a_hard_problem() -> None:
    generator = torch.Generator().manual_seed(5)
    cost = torch.rand(20, 30, generator=generator, dtype=torch.float64)
    a, b = (torch.rand(n, generator=generator, dtype=torch.float64) for n in (20, 30))
    plan, log = sinkhorn_newton(a / a.sum(), b / b.sum(), cost, 1 / 200, tol=1e-12)
    slow, _ = sinkhorn(a / a.sum(), b / b.sum(), cost, 1 / 200, tol=1e-12, max_iter=200_000)
    assert log["converged"]
    assert float((plan - slow).abs().sum()) < 1e-9
    assert abs(float(((plan - slow) * cost).sum())) < 1e-10


def test_newton_needs_a_fraction_of_the_rounds() -> None:
    made = problem("random-transport:n=80,eta=300")
    fast, slow = (run(method, made, budget=3000) for method in (SinkhornNewtonSparse(), Sinkhorn()))
    assert fast.status == "reached"
    assert fast.steps[-1] < 0.1 * slow.steps[-1]


def test_hessian_is_that_of_the_dual() -> None:
    instance = Transport(torch.from_numpy(A), torch.from_numpy(B), torch.from_numpy(COST), 0.1)
    x = torch.linspace(-0.1, 0.1, 11, dtype=torch.float64)

    def dual(x: torch.Tensor) -> torch.Tensor:
        f, g = x[:6], x[6:]
        plan = ((f[:, None] + g - instance.M) / 0.1).exp()
        return instance.a @ f + instance.b @ g - 0.1 * plan.sum()

    product, diagonal = instance.hessian(instance.plan(x), 30)
    expected = -0.1 * torch.autograd.functional.hessian(dual, x)
    found = torch.stack([product(column) for column in torch.eye(11, dtype=torch.float64)])
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(diagonal, expected.diagonal())
    assert instance.calls["product"] == 11


def test_sparsified_hessian_keeps_the_largest_entries_and_stays_semidefinite() -> None:
    instance = Transport(torch.from_numpy(A), torch.from_numpy(B), torch.from_numpy(COST), 0.1)
    plan = instance.plan(instance.x0)
    product, diagonal = instance.hessian(plan, 7)
    matrix = torch.stack([product(column) for column in torch.eye(11, dtype=torch.float64)])
    kept = matrix[:6, 6:]
    assert int((kept > 0).sum()) == 7
    assert float(kept[kept > 0].min()) >= float(plan[kept == 0].max())
    assert float(torch.linalg.eigvalsh(matrix)[0]) >= -1e-15
    torch.testing.assert_close(diagonal, torch.cat((plan.sum(1), plan.sum(0))))


def test_points_without_mass_are_dropped() -> None:
    a, b = np.array([0.5, 0.0, 0.5]), np.array([0.0, 0.25, 0.25, 0.5])
    cost = np.random.default_rng(0).random((3, 4))
    plan, _ = sinkhorn_newton(a, b, cost, 0.05, tol=1e-12)
    assert np.all(plan[1] == 0)
    assert np.all(plan[:, 0] == 0)
    smaller, _ = sinkhorn_newton(a[[0, 2]], b[1:], cost[[0, 2]][:, 1:], 0.05, tol=1e-12)
    np.testing.assert_allclose(plan[[0, 2]][:, 1:], smaller, atol=1e-14)


def test_empty_masses_mean_uniform_and_tensors_stay_tensors() -> None:
    plan, log = sinkhorn_newton([], [], torch.rand(4, 5), 0.1, tol=1e-5)
    assert isinstance(plan, torch.Tensor)
    assert plan.dtype == torch.float32
    assert log["converged"]
    torch.testing.assert_close(plan.sum(1), torch.full((4,), 0.25), atol=1e-5, rtol=0)


def test_one_point_is_solved_at_once() -> None:
    plan, log = sinkhorn_newton([1.0], [1.0], [[2.0]], 0.1)
    assert plan.item() == pytest.approx(1.0)
    assert log["niter"] <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((A, B, COST, 0.0), "reg"),
        ((A, B, COST, -1.0), "reg"),
        ((A, 2 * B, COST, 0.1), "total mass"),
        ((-A, B, COST, 0.1), "at least zero"),
        ((A, B, COST.T, 0.1), "shape"),
        ((A, B, COST[0], 0.1), "matrix"),
        ((A, B, COST * np.nan, 0.1), "finite"),
        ((A, B, np.ones((6, 5), int), 0.1), "M must hold"),
    ],
)
def test_bad_problems(arguments: tuple, message: str) -> None:
    with pytest.raises(InputError, match=message):
        sinkhorn_newton(*arguments)


@pytest.mark.parametrize("density", [0.0, -0.1, 1.01, float("nan")])
def test_bad_density(density: float) -> None:
    with pytest.raises(InputError, match="density"):
        sinkhorn_newton(A, B, COST, 0.1, density=density)
