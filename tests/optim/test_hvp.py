"""Hessian products against Hessians that are known."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim.hvp import cauchy_row_norms, directional_sharpness, hutchinson_diagonal, make_hvp


def quadratic(seed: int = 0) -> tuple[Tensor, list[nn.Parameter]]:
    """A symmetric 5 x 5 matrix, and the five unknowns as a pair and a row of three."""
    generator = torch.Generator().manual_seed(seed)
    root = torch.randn(5, 5, generator=generator, dtype=torch.float64)
    point = torch.randn(5, generator=generator, dtype=torch.float64)
    return root + root.T, [nn.Parameter(point[:2].clone()), nn.Parameter(point[2:].reshape(1, 3).clone())]


def flat(tensors: Sequence[Tensor]) -> Tensor:
    return torch.cat([tensor.detach().flatten() for tensor in tensors])


def value(matrix: Tensor, params: list[nn.Parameter]) -> Tensor:
    x = torch.cat([param.flatten() for param in params])
    return 0.5 * x @ matrix @ x


def test_products_and_gradient_of_a_quadratic() -> None:
    matrix, params = quadratic()
    hvp = make_hvp(lambda: value(matrix, params), params)
    vectors = [torch.tensor([1.0, -2.0]).double(), torch.tensor([[0.5, 3.0, -1.0]]).double()]
    for _ in range(2):
        torch.testing.assert_close(flat(hvp(vectors)), matrix @ flat(vectors))
    torch.testing.assert_close(flat(hvp.grads), matrix @ flat(params))
    assert all(param.grad is None for param in params)


def test_products_agree_with_the_hessian_of_a_network() -> None:
    weight = nn.Parameter(torch.tensor([[0.3, -0.7], [1.1, 0.2]], dtype=torch.float64))
    inputs = torch.tensor([[1.0, 2.0], [-0.5, 0.3]], dtype=torch.float64)

    def loss(w: Tensor) -> Tensor:
        return (inputs @ w).tanh().square().sum()

    vector = torch.tensor([[1.0, 0.5], [-2.0, 0.1]], dtype=torch.float64)
    full = torch.autograd.functional.hessian(loss, weight.detach()).reshape(4, 4)
    (found,) = make_hvp(lambda: loss(weight), [weight])([vector])
    torch.testing.assert_close(found.flatten(), full @ vector.flatten())


def test_unused_and_linear_parameters_have_zero_rows() -> None:
    used, linear, unused = (nn.Parameter(torch.ones(2)) for _ in range(3))
    hvp = make_hvp(lambda: (used**2).sum() + linear.sum(), [used, linear, unused])
    found = hvp([torch.ones(2)] * 3)
    assert [tensor.tolist() for tensor in found] == [[2, 2], [0, 0], [0, 0]]
    assert [tensor.tolist() for tensor in hvp.grads] == [[2, 2], [1, 1], [0, 0]]
    assert make_hvp(lambda: linear.sum(), [linear])([torch.ones(2)])[0].tolist() == [0, 0]


def test_works_where_gradients_are_off() -> None:
    x = nn.Parameter(torch.ones(2))
    with torch.no_grad():
        hvp = make_hvp(lambda: (x**3).sum(), [x])
        assert hvp([torch.ones(2)])[0].tolist() == [6, 6]


def test_diagonal_is_exact_if_nothing_is_beside_it_and_unbiased_otherwise() -> None:
    matrix, params = quadratic()
    generator = torch.Generator().manual_seed(1)
    diagonal = torch.diag(matrix.diag())
    once = hutchinson_diagonal(make_hvp(lambda: value(diagonal, params), params), params, generator)
    torch.testing.assert_close(flat(once), matrix.diag())
    often = hutchinson_diagonal(make_hvp(lambda: value(matrix, params), params), params, generator, samples=2000)
    spread = (matrix.square().sum(1) - matrix.diag() ** 2).sqrt() / 2000**0.5
    assert ((flat(often) - matrix.diag()).abs() < 4 * spread).all()


def test_sharpness_along_an_eigenvector_is_its_eigenvalue() -> None:
    matrix, params = quadratic()
    values, vectors = torch.linalg.eigh(matrix)
    direction = 3.0 * vectors[:, 1]
    hvp = make_hvp(lambda: value(matrix, params), params)
    assert directional_sharpness(hvp, [direction[:2], direction[2:].reshape(1, 3)]) == pytest.approx(float(values[1]))
    with pytest.raises(InputError, match="direction"):
        directional_sharpness(hvp, [torch.zeros(2), torch.zeros(1, 3)])


def test_cauchy_probes_find_the_row_sums() -> None:
    matrix, params = quadratic()
    hvp = make_hvp(lambda: value(matrix, params), params)
    found = cauchy_row_norms(hvp, params, torch.Generator().manual_seed(0), probes=2000)
    assert [tensor.shape for tensor in found] == [(2,), (1, 3)]
    torch.testing.assert_close(flat(found), matrix.abs().sum(1), rtol=0.15, atol=0.0)


def test_bad_input_is_refused_by_name() -> None:
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="loss"):
        make_hvp(lambda: x**2, [x])
    with pytest.raises(InputError, match="loss"):
        make_hvp(lambda: torch.ones(()), [x])
    with pytest.raises(InputError, match=r"params\[1\]"):
        make_hvp(lambda: (x**2).sum(), [x, torch.ones(2)])
    with pytest.raises(InputError, match="shaped"):
        make_hvp(lambda: (x**2).sum(), [x])([torch.ones(3)])
    with pytest.raises(InputError, match="samples"):
        hutchinson_diagonal(make_hvp(lambda: (x**2).sum(), [x]), [x], torch.Generator(), samples=0)
