"""Anderson mixing against what is known in closed form."""

from __future__ import annotations

import pytest
import torch
from scipy.sparse.linalg import gmres

from hasten.core.errors import InputError
from hasten.numerics.anderson import AndersonMixer


def affine(dim: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(dim, dim, generator=generator, dtype=torch.float64)
    matrix = 0.9 * matrix / torch.linalg.matrix_norm(matrix, 2)
    offset = torch.randn(dim, generator=generator, dtype=torch.float64)
    return matrix, offset, torch.linalg.solve(torch.eye(dim, dtype=torch.float64) - matrix, offset)


def test_an_affine_map_is_solved_in_dimension_plus_one_steps() -> None:
    matrix, offset, fixed = affine(6)
    mixer = AndersonMixer(6)
    u = torch.zeros(6, dtype=torch.float64)
    mixer.start(u)
    for _ in range(7):
        u = mixer.step(matrix @ u + offset)
    assert float((u - fixed).norm()) < 1e-10


def test_with_full_memory_it_is_gmres() -> None:
    # Walker and Ni (2011): the mixed point is the map applied to the GMRES iterate.
    matrix, offset, _ = affine(12, seed=4)
    mixer = AndersonMixer(12)
    u = torch.zeros(12, dtype=torch.float64)
    mixer.start(u)
    for _ in range(5):
        u = mixer.step(matrix @ u + offset)
    system = torch.eye(12, dtype=torch.float64) - matrix
    x, _ = gmres(system.numpy(), offset.numpy(), rtol=1e-30, restart=4, maxiter=1)
    expected = matrix @ torch.from_numpy(x) + offset
    torch.testing.assert_close(u, expected, rtol=1e-9, atol=1e-9)


def test_the_first_step_is_the_map_and_shapes_are_kept() -> None:
    mixer = AndersonMixer(3)
    mixer.start(torch.zeros(2, 2))
    g = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    assert torch.equal(mixer.step(g), g)


def test_reset_forgets_and_replace_moves_the_point() -> None:
    matrix, offset, _ = affine(4)
    mixer = AndersonMixer(4)
    u = torch.zeros(4, dtype=torch.float64)
    mixer.start(u)
    for _ in range(2):
        u = mixer.step(matrix @ u + offset)
    other = torch.ones(4, dtype=torch.float64)
    mixer.replace(other)
    assert torch.equal(mixer.point, other)
    mixer.reset()
    g = matrix @ other + offset
    assert torch.equal(mixer.step(g), g)


def test_a_repeated_point_does_no_harm() -> None:
    mixer = AndersonMixer(3)
    u = torch.ones(3, dtype=torch.float64)
    mixer.start(u)
    for _ in range(4):
        u = mixer.step(u.clone())
    assert torch.equal(u, torch.ones(3, dtype=torch.float64))


def test_bad_use() -> None:
    with pytest.raises(InputError, match="m must be"):
        AndersonMixer(0)
    with pytest.raises(InputError, match="start"):
        AndersonMixer(2).step(torch.ones(2))
