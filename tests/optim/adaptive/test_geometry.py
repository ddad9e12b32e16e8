"""Norms of known Hessians, and rotated coordinates against a rotated problem."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import ADOPT, GrokfastEMA, Rotated, compose, hessian_11_norm, spectral_norm
from hasten.optim.adaptive.geometry import random_rotation
from hasten.optim.hvp import make_hvp


def product(matrix: Tensor) -> Any:
    """`H v` and the parameters it acts on, in two tensors."""
    half = len(matrix) // 2
    params = [nn.Parameter(torch.ones(half).double()), nn.Parameter(torch.ones(1, len(matrix) - half).double())]

    def loss() -> Tensor:
        x = torch.cat([param.flatten() for param in params])
        return x @ matrix @ x / 2

    return make_hvp(loss, params), params


def symmetric(size: int) -> Tensor:
    root = torch.randn(size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return root + root.T


def test_11_norm_exact_and_estimated() -> None:
    matrix = symmetric(20)
    hvp, params = product(matrix)
    expected = float(matrix.abs().sum()) / 20
    assert hessian_11_norm(hvp, params, torch.Generator(), probes=20) == pytest.approx(expected, rel=1e-12)
    estimate = [hessian_11_norm(hvp, params, torch.Generator().manual_seed(s), probes=19) for s in range(10)]
    assert sum(estimate) / 10 == pytest.approx(expected, rel=0.15)


def test_spectral_norm_is_the_largest_eigenvalue() -> None:
    matrix = symmetric(20)
    hvp, params = product(matrix)
    expected = float(torch.linalg.eigvalsh(matrix).abs().max())
    found = spectral_norm(hvp, params, torch.Generator().manual_seed(0), iterations=2000, tol=1e-10)
    assert found == pytest.approx(expected, rel=1e-4)
    hvp, params = product(torch.zeros(4, 4).double())
    assert spectral_norm(hvp, params, torch.Generator().manual_seed(0)) == 0.0


def test_rotations_are_orthogonal() -> None:
    q = random_rotation(7, torch.Generator().manual_seed(0))
    torch.testing.assert_close(q @ q.T, torch.eye(7).double())


def test_rotated_is_the_base_on_the_rotated_problem() -> None:
    params, twins = ref.start(), ref.start()
    optimizer = Rotated(torch.optim.Adam(params, lr=1e-2), seed=3)
    generators = [torch.Generator().manual_seed(3 * 1_000_003 + place) for place in range(len(twins))]
    turns = [random_rotation(twin.numel(), generator) for twin, generator in zip(twins, generators)]
    turned = [nn.Parameter(q.T @ twin.detach().flatten()) for q, twin in zip(turns, twins)]
    plain = torch.optim.Adam(turned, lr=1e-2)
    for t in range(1, 20):
        for param, y, q, grad in zip(params, turned, turns, ref.stream(t)):
            param.grad = grad
            y.grad = None if grad is None else q.T @ grad.flatten()
        kept = [None if param.grad is None else param.grad.clone() for param in params]
        optimizer.step()
        plain.step()
        for param, grad in zip(params, kept):
            assert grad is None or torch.equal(grad, param.grad)  # type: ignore[arg-type]
    for param, y, q in zip(params, turned, turns):
        torch.testing.assert_close(param.detach().flatten(), q @ y.detach(), rtol=0.0, atol=1e-11)


@pytest.mark.parametrize("block", [None, 1, 4, 100])
def test_sgd_does_not_notice(block: int | None) -> None:
    params, twins = ref.start(), ref.start()
    ours = ref.drive(Rotated(torch.optim.SGD(params, lr=0.1, momentum=0.9), block=block), params, last=30)
    theirs = ref.drive(torch.optim.SGD(twins, lr=0.1, momentum=0.9), twins, last=30)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-10)


def test_blocks_are_rotated_for_themselves() -> None:
    x = nn.Parameter(torch.zeros(10, dtype=torch.float64))
    x.grad = torch.zeros_like(x)
    x.grad[5] = 1.0
    Rotated(torch.optim.Adam([x], lr=0.1), block=4).step()
    assert torch.equal(x[:4], torch.zeros(4).double())
    assert torch.equal(x[8:], torch.zeros(2).double())
    assert (x[4:8] != 0).all()


def test_nothing_moves_without_a_step_or_after_an_error() -> None:
    params = ref.start()
    before = [param.detach().clone() for param in params]
    rotated = Rotated(ADOPT(params, lr=0.0))
    ref.drive(rotated, params, last=4)
    assert all(torch.equal(param, old) for param, old in zip(params, before))
    params[0].grad = torch.full_like(params[0], math.nan)
    with pytest.raises(Exception, match="infinite or NaN"):
        rotated.step()
    assert all(torch.equal(param, old) for param, old in zip(params, before))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair)), None])
def test_continues_after_a_restart(duplicate: Any) -> None:
    params = ref.start()
    optimizer = Rotated(torch.optim.Adam(params, lr=1e-2), block=5, seed=9)
    ref.drive(optimizer, params, last=5)
    if duplicate is None:
        others = [nn.Parameter(param.detach().clone()) for param in params]
        other = Rotated(torch.optim.Adam(others, lr=1e-2))
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    else:
        others, other = duplicate((params, optimizer))
    for a, b in zip(ref.drive(optimizer, params, 6, 12), ref.drive(other, others, 6, 12)):
        assert torch.equal(a, b)


def test_composes_and_takes_closures() -> None:
    x = nn.Parameter(torch.ones(6))
    optimizer = compose(Rotated(torch.optim.Adam([x], lr=0.1)), GrokfastEMA())

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (x**2).sum()
        loss.backward()
        return loss

    losses = [optimizer.step(closure).item() for _ in range(60)]
    assert losses[0] == 6.0
    assert min(losses) < 1.0


def test_complex_and_half_precision_parameters() -> None:
    number = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    optimizer = Rotated(torch.optim.SGD([number, half], lr=0.5))
    number.grad, half.grad = torch.full_like(number, 1j), torch.ones_like(half)
    optimizer.step()
    torch.testing.assert_close(number.detach(), torch.full((3,), 1 - 0.5j, dtype=torch.complex64))
    torch.testing.assert_close(half.detach().float(), torch.full((3,), 0.5), rtol=0.0, atol=0.02)


def test_bad_input_is_refused() -> None:
    with pytest.raises(InputError, match="block"):
        Rotated(torch.optim.SGD([nn.Parameter(torch.zeros(100, 100))], lr=0.1))
    rotated = Rotated(torch.optim.SGD([nn.Parameter(torch.zeros(3))], lr=0.1))
    with pytest.raises(InputError, match="block"):
        rotated.add_param_group({"params": [nn.Parameter(torch.zeros(100, 100))]})
    with pytest.raises(InputError, match="base"):
        Rotated([nn.Parameter(torch.zeros(3))])  # type: ignore[arg-type]
