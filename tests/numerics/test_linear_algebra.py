"""Factorisations, conjugate gradients, rigid motions and projections against independent codes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.linalg import logm
from scipy.optimize import LinearConstraint, minimize
from scipy.sparse.linalg import cg
from scipy.spatial.transform import Rotation

from hasten.core.errors import DivergedError
from hasten.numerics.linear import NotConvexError, cholesky, cholesky_solve, conjugate_gradient
from hasten.numerics.projection import project_ball, project_simplex
from hasten.numerics.rigid import plane_fit, rigid_exp, rigid_fit, rigid_log, rotation_exp


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_cholesky_solves() -> None:
    root = normal(5, 5)
    matrix = root @ root.T + torch.eye(5)
    b = normal(5, seed=1)
    torch.testing.assert_close(matrix @ cholesky_solve(cholesky(matrix), b), b)


@pytest.mark.parametrize("smallest", [-0.5, 0.0])
def test_cholesky_names_the_smallest_eigenvalue(smallest: float) -> None:
    basis = torch.linalg.qr(normal(3, 3)).Q
    matrix = basis @ torch.diag(torch.tensor([smallest, 1.0, 2.0], dtype=torch.float64)) @ basis.T
    with pytest.raises(NotConvexError, match="smallest eigenvalue") as caught:
        cholesky(matrix)
    assert caught.value.smallest == pytest.approx(smallest, abs=1e-12)


def test_cholesky_accepts_bad_scaling() -> None:
    cholesky(torch.diag(torch.tensor([1e-12, 1.0, 1e2], dtype=torch.float64)))


def test_cholesky_refuses_nan() -> None:
    with pytest.raises(DivergedError):
        cholesky(torch.full((2, 2), math.nan))


def test_conjugate_gradient_walks_like_scipys() -> None:
    root = normal(20, 20)
    matrix = root @ root.T + torch.eye(20)
    b, diagonal = normal(20, seed=1), matrix.diagonal()
    ours = conjugate_gradient(lambda v: matrix @ v, b, diagonal=diagonal, tol=1e-30, max_iter=7)
    theirs, _ = cg(matrix.numpy(), b.numpy(), rtol=1e-30, maxiter=7, M=np.diag(1 / diagonal.numpy()))
    assert (ours.products, ours.converged) == (7, False)
    np.testing.assert_allclose(ours.x.numpy(), theirs, rtol=1e-9)
    done = conjugate_gradient(lambda v: matrix @ v, b, tol=1e-10)
    assert done.converged
    assert float((matrix @ done.x - b).norm()) <= 1e-9 * float(b.norm())


def test_conjugate_gradient_stops_at_an_indefinite_matrix() -> None:
    result = conjugate_gradient(lambda v: -v, torch.ones(3))
    assert not result.converged


def motion(seed: int, angle: float = 1.0) -> torch.Tensor:
    axis = normal(3, seed=seed)
    result = torch.eye(4, dtype=torch.float64)
    result[:3, :3] = rotation_exp(angle * axis / axis.norm())
    result[:3, 3] = normal(3, seed=seed + 1)
    return result


@pytest.mark.parametrize("weighted", [False, True])
def test_rigid_fit_is_scipys_align_vectors(weighted: bool) -> None:
    points, matched = normal(30, 3), normal(30, 3, seed=2) + normal(30, 3)
    weights = torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64) if weighted else None
    w = weights if weights is not None else torch.ones(30, dtype=torch.float64)
    centre, goal = (w @ points) / w.sum(), (w @ matched) / w.sum()
    rotation, _ = Rotation.align_vectors((matched - goal).numpy(), (points - centre).numpy(), weights=w.numpy())
    fitted = rigid_fit(points, matched, weights)
    np.testing.assert_allclose(fitted[:3, :3].numpy(), rotation.as_matrix(), atol=1e-10)
    np.testing.assert_allclose(fitted[:3, 3].numpy(), goal.numpy() - rotation.apply(centre.numpy()), atol=1e-10)


def test_rigid_fit_of_mirrored_points_is_a_rotation() -> None:
    points = normal(10, 3)
    fitted = rigid_fit(points, points * torch.tensor([1.0, 1.0, -1.0], dtype=torch.float64))
    assert float(torch.linalg.det(fitted[:3, :3])) == pytest.approx(1.0)


def test_rigid_fit_refuses_matches_on_a_line() -> None:
    line = torch.outer(torch.arange(4.0, dtype=torch.float64), torch.ones(3, dtype=torch.float64))
    with pytest.raises(DivergedError, match="line"):
        rigid_fit(line, line)


@given(st.integers(0, 10_000), st.floats(0.0, 3.1))
@settings(max_examples=30)
def test_rigid_log_inverts_exp(seed: int, angle: float) -> None:
    made = motion(seed, angle)
    twist = rigid_log(made)
    assert twist is not None
    torch.testing.assert_close(rigid_exp(twist), made, rtol=1e-9, atol=1e-9)


def test_rigid_log_is_scipys_matrix_logarithm() -> None:
    made = motion(5, 2.0)
    twist = rigid_log(made)
    assert twist is not None
    np.testing.assert_allclose(twist.numpy(), logm(made.numpy()).real, atol=1e-10)


def test_rigid_log_at_pi_is_refused() -> None:
    assert rigid_log(motion(3, math.pi)) is None


def test_plane_fit_recovers_a_small_motion() -> None:
    points, normals = normal(40, 3), torch.nn.functional.normalize(normal(40, 3, seed=1))
    small = rigid_exp(1e-5 * rigid_log(motion(2)))  # type: ignore[operator]
    matched = points @ small[:3, :3].T + small[:3, 3]
    torch.testing.assert_close(plane_fit(points, matched, normals), small, rtol=0, atol=1e-9)


def test_plane_fit_refuses_a_sphere() -> None:
    points = torch.nn.functional.normalize(normal(40, 3))
    with pytest.raises(DivergedError, match="normals"):
        plane_fit(points, points, points)


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=8))
@settings(max_examples=30)
def test_simplex_projection_is_optimal(values: list[float]) -> None:
    v = torch.tensor(values, dtype=torch.float64)
    x = project_simplex(v)
    assert float(x.min()) >= 0
    assert float(x.sum()) == pytest.approx(1.0)
    # Variational inequality at the vertices: <v - x, e_i - x> <= 0 for all i.
    assert float((v - x).max() - torch.dot(v - x, x)) <= 1e-9


def test_simplex_projection_agrees_with_a_general_solver() -> None:
    v = normal(6)
    found = minimize(
        lambda x: ((x - v.numpy()) ** 2).sum(),
        np.full(6, 1 / 6),
        jac=lambda x: 2 * (x - v.numpy()),
        bounds=[(0, None)] * 6,
        constraints=[LinearConstraint(np.ones(6), 1, 1)],
        options={"ftol": 1e-15},
    )
    np.testing.assert_allclose(project_simplex(v).numpy(), found.x, atol=1e-6)


def test_ball_projection() -> None:
    v = torch.tensor([3.0, 4.0])
    torch.testing.assert_close(project_ball(v), v / 5)
    assert torch.equal(project_ball(v, 6.0), v)
