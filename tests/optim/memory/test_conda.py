"""Conda against its formulas, worked out in the original space with a whole SVD, and against published code."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import Conda


def stream(t: int, param: Tensor) -> Tensor:
    i = torch.arange(param.numel(), dtype=torch.float64)
    return (torch.sin(0.7 * t + 1.3 * i * (1 + i % 3)) * (1 + 0.1 * i)).reshape(param.shape).to(param.dtype)


def start(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.cos(torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape))


def reference(shape: tuple[int, int], steps: int, gap: int, right: bool) -> Tensor:
    """The update in the order of the paper: momentum unrotated, both projected at every step."""
    p = start(*shape).detach()
    m, v, basis = torch.zeros_like(p), torch.zeros(()), torch.eye(1)
    for t in range(1, steps + 1):
        g = stream(t, p)
        m = 0.9 * m + 0.1 * g
        if (t - 1) % gap == 0:
            u, _, vh = torch.linalg.svd(m, full_matrices=False)
            basis = vh.T if right else u.T
        inside, average = (g @ basis, m @ basis) if right else (basis @ g, basis @ m)
        v = 0.999 * v + 0.001 * inside**2
        n = average / (v.sqrt() + 1e-8)
        back = n @ basis.T if right else basis.T @ n
        p = p - 1e-2 * math.sqrt(1 - 0.999**t) / (1 - 0.9**t) * back
        p = p - 1e-2 * 0.1 * p
    return p


RIGHT = {"std": (True, False, True), "reverse_std": (False, True, False), "left": (False,) * 3, "right": (True,) * 3}


@pytest.mark.parametrize("side", list(RIGHT))
@pytest.mark.parametrize(("place", "shape"), list(enumerate([(7, 4), (4, 7), (5, 5)])))
@pytest.mark.parametrize("gap", [6, 2000])
def test_formulas(side: str, place: int, shape: tuple[int, int], gap: int) -> None:
    p = start(*shape)
    optimizer = Conda([p], lr=1e-2, weight_decay=0.1, update_gap=gap, side=side)
    for t in range(1, 21):
        p.grad = stream(t, p)
        optimizer.step()
    torch.testing.assert_close(p.detach(), reference(shape, 20, gap, RIGHT[side][place]), atol=1e-10, rtol=0)


def test_published_code() -> None:
    """Sums of entries, and of entries times 1, 2, ..., after 20 steps of jie040109/Conda, commit df83c10.

    Learning rate 1e-2, decay 0.1, a basis at the steps 1, 8 and 15; that code takes its SVD in single precision.
    """
    golden = {(7, 4): (1.203311254, 20.138969786), (4, 7): (1.165418724, 20.13949971)}
    for shape, (total, weighted) in golden.items():
        p = start(*shape)
        optimizer = Conda([p], lr=1e-2, weight_decay=0.1, update_gap=7)
        for t in range(1, 21):
            p.grad = stream(t, p)
            optimizer.step()
        flat = p.detach().flatten()
        assert abs(float(flat.sum()) - total) < 1e-5
        assert abs(float((flat * torch.arange(1, len(flat) + 1)).sum()) - weighted) < 1e-4


def test_anything_but_a_matrix_takes_adams_step() -> None:
    ours, theirs = start(2, 3, 2), start(2, 3, 2)
    conda, adam = Conda([ours], lr=1e-2, eps=1e-12), torch.optim.Adam([theirs], lr=1e-2, eps=1e-12)
    for t in range(1, 11):
        ours.grad, theirs.grad = stream(t, ours), stream(t, theirs)
        conda.step()
        adam.step()
    torch.testing.assert_close(ours, theirs, atol=1e-8, rtol=0)


def test_tensors_of_more_axes_may_count_as_matrices() -> None:
    kernel, flat = start(4, 2, 3), start(4, 6)
    for optimizer in (Conda([kernel], only_2d=False, update_gap=3), Conda([flat], update_gap=3)):
        (param,) = optimizer.param_groups[0]["params"]
        for t in range(1, 8):
            param.grad = stream(t, param)
            optimizer.step()
    assert torch.equal(kernel.flatten(1), flat)


@pytest.mark.parametrize("grad", [torch.zeros(4, 3), torch.eye(4, 3) * 3e38, torch.ones(4, 3)])
def test_degenerate_gradients_give_finite_steps(grad: Tensor) -> None:
    p = nn.Parameter(torch.ones(4, 3))
    optimizer = Conda([p], update_gap=1)
    for _ in range(3):
        p.grad = grad.clone()
        optimizer.step()
    basis = optimizer.state[p]["basis"]
    torch.testing.assert_close(basis @ basis.T, torch.eye(3))
    if not grad.any():
        assert torch.equal(p, torch.ones(4, 3))
        assert torch.equal(basis, torch.eye(3))


def test_a_matrix_is_scaled_and_a_vector_is_not() -> None:
    matrices, vectors = (start(3, 3), start(3, 3)), (start(3), start(3))
    for scale, matrix, vector in zip((1.0, 0.5), matrices, vectors):
        optimizer = Conda([matrix, vector], lr=1e-2, scale=scale)
        matrix.grad, vector.grad = stream(1, matrix), stream(1, vector)
        optimizer.step()
    torch.testing.assert_close(matrices[1] - start(3, 3), 0.5 * (matrices[0] - start(3, 3)))
    assert torch.equal(*vectors)


@pytest.mark.parametrize(
    ("options", "message"), [({"update_gap": 0}, "update_gap"), ({"scale": 0.0}, "scale"), ({"side": "both"}, "side")]
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Conda([start(2, 2)], **options)
