"""Projector: the way down and up, renewal, learning, and what is saved."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.optim import Projector
from hasten.optim.memory.projector import KINDS, SIDES, principal


def matrix(rows: int = 9, cols: int = 6, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, cols, generator=generator, dtype=torch.float64)


def made(kind: str, x: Tensor, **options: Any) -> Projector:
    projector = Projector(kind, 3, **options)
    projector.update(x)
    return projector


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(9, 6), (6, 9), (6, 6)])
def test_up_after_down_is_an_orthogonal_projection(kind: str, shape: tuple[int, int]) -> None:
    x, other = matrix(*shape), matrix(*shape, seed=1)
    projector = made(kind, x)
    y = projector.down(other)
    assert tuple(y.shape) == projector.shape(shape)
    there = projector.up(y)
    torch.testing.assert_close(projector.down(there), y)
    assert abs(float(((other - there) * there).sum())) < 1e-10


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_added_in_place_and_left_outside(kind: str, shape: tuple[int, int]) -> None:
    x, other = matrix(*shape), matrix(*shape, seed=1)
    projector = made(kind, x)
    y = projector.down(other)
    torch.testing.assert_close(projector.add_(x.T.contiguous().T.clone(), y, -0.5), x - 0.5 * projector.up(y))
    torch.testing.assert_close(projector.outside(other, y), other - projector.up(y))
    assert torch.equal(other, matrix(*shape, seed=1))


@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_svd_keeps_the_largest_singular_values(side: str, shape: tuple[int, int]) -> None:
    x = matrix(*shape)
    lost = x - (projector := made("svd", x, side=side)).up(projector.down(x))
    torch.testing.assert_close(lost.norm(), torch.linalg.svdvals(x)[3:].norm())


def test_singular_vectors_are_those_of_a_whole_decomposition() -> None:
    x = torch.stack([matrix(20, 5, seed) for seed in range(3)])
    for right, stack in ((True, x), (False, x.mT)):
        expected = torch.linalg.svd(x, full_matrices=False).Vh
        overlap = (principal(stack, None, right) @ expected.mT).abs()
        torch.testing.assert_close(overlap, torch.eye(5, dtype=x.dtype).expand(3, 5, 5), atol=1e-12, rtol=0)


def test_zero_and_overflowing_matrices_have_a_basis_too() -> None:
    x = torch.stack([torch.zeros(4, 3), torch.full((4, 3), torch.nan), torch.eye(4, 3) * 3e38])
    basis = principal(x, None, True)
    assert torch.equal(basis[0], torch.eye(3))
    assert torch.equal(basis[1], torch.eye(3))
    torch.testing.assert_close(basis[2] @ basis[2].T, torch.eye(3))


def test_choices_are_what_they_say() -> None:
    x = matrix(6, 4)
    columns, rows, largest = made("columns", x), made("rows", x), made("topk", x)
    assert torch.equal(columns.down(x), x[:, columns.state["index"]])
    assert torch.equal(rows.down(x), x[rows.state["index"]])
    assert set(largest.state["index"].tolist()) == set(x.norm(dim=1).argsort()[-3:].tolist())
    blocks = made("blocks", x)
    blocks.active = False
    assert not blocks.up(blocks.down(x)).any()


def test_renewed_once_per_gap() -> None:
    projector = Projector("svd", 2, gap=3)
    assert [projector.update(matrix(seed=step)) for step in range(7)] == [True, False, False] * 2 + [True]
    lasting = Projector("random", 2, gap=None)
    assert [lasting.update(matrix()) for _ in range(4)] == [True, False, False, False]


@pytest.mark.parametrize("kind", KINDS)
def test_a_restored_projector_goes_on_bit_for_bit(kind: str) -> None:
    options = {"gap": 2, "seed": 5}
    projector, twin = Projector(kind, 3, **options), Projector(kind, 3, **options)

    def walk(one: Projector, first: int, last: int) -> Tensor:
        for step in range(first, last):
            one.update(matrix(seed=step))
            one.learn(matrix(seed=step))
        return one.down(matrix())

    walk(projector, 0, 3)
    file = io.BytesIO()
    torch.save(projector.state_dict(), file)
    file.seek(0)
    twin.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(walk(projector, 3, 6), walk(twin, 3, 6))


def test_random_choices_depend_on_the_seed_and_the_renewal() -> None:
    first, same, other = (made("random", matrix(), gap=1, seed=seed) for seed in (0, 0, 1))
    before = first.state["basis"]
    assert torch.equal(before, same.state["basis"])
    assert not torch.equal(before, other.state["basis"])
    first.update(matrix())
    assert not torch.equal(before, first.state["basis"])


@pytest.mark.parametrize("shape", [(9, 6), (6, 9)])
def test_learning_is_a_step_of_adamw_on_the_loss(shape: tuple[int, int]) -> None:
    projector = made("online_pca", matrix(*shape), reg=0.1, decay=0.01)
    basis = torch.nn.Parameter(projector.state["basis"].clone())
    adamw = torch.optim.AdamW([basis], lr=1 / 200, weight_decay=0.01)
    for step in range(1, 6):
        x = matrix(*shape, seed=step)
        unit = x / x.norm()
        kept = unit @ basis.T @ basis if shape[0] >= shape[1] else basis.T @ basis @ unit
        loss = (kept - unit).norm() ** 2 + 0.1 * (basis @ basis.T - torch.eye(3)).norm() ** 2
        adamw.zero_grad()
        loss.backward()
        adamw.step()
        projector.update(x)
        projector.learn(x)
        torch.testing.assert_close(projector.state["basis"], basis.detach(), atol=1e-12, rtol=0)


def test_a_zero_gradient_teaches_nothing() -> None:
    projector = made("online_pca", matrix())
    before = projector.state["basis"].clone()
    projector.update(torch.zeros(9, 6, dtype=torch.float64))
    projector.learn(torch.zeros(9, 6, dtype=torch.float64))
    assert torch.equal(projector.state["basis"], before)


def test_plain_gradient_steps_on_the_basis() -> None:
    projector = made("online_pca", matrix(), optimizer="sgd", lr=0.1, reg=0.0)
    lost = []
    for _ in range(200):
        x = matrix(seed=3)
        projector.update(x)
        projector.learn(x)
        lost.append(float((x - projector.up(projector.down(x))).norm()))
    assert lost[-1] < lost[0]
    assert lost[-1] < 1.05 * float(torch.linalg.svdvals(matrix(seed=3))[3:].norm())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "pca"}, "kind"),
        ({"rank": 0}, "rank"),
        ({"side": "top"}, "side"),
        ({"gap": 0}, "gap"),
        ({"lr": -1.0}, "lr"),
        ({"optimizer": "lion"}, "optimizer"),
    ],
)
def test_bad_arguments_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Projector(**options)


def test_misuse_is_explained() -> None:
    with pytest.raises(InputError, match="before Projector"):
        Projector().down(matrix())
    with pytest.raises(InputError, match="shaped"):
        Projector().update(torch.zeros(3))
    with pytest.raises(InputError, match="svd"):
        Projector("svd").load_state_dict(made("rows", matrix()).state_dict())
