"""StableMax against the authors' code and its definition, and where softmax has no gradient left."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn.functional import cross_entropy

from hasten.core.errors import InputError
from hasten.optim.filters.stablemax import log_stablemax, stablemax, stablemax_cross_entropy

TARGET = torch.tensor([0, 3, 1])
# Loss and gradient by utils.py of LucasPrietoAl/grokking-at-the-edge-of-numerical-stability at commit 0cc9e8d.
LOSS = 2.128811664307045
GRADIENT = [
    -0.053652968036529664, 0.017123287671232872, 0.06849315068493149, 0.0027397260273972603,
    0.0006626861465571142, 0.0006626861465571142, 7.314335896481432e-09, -0.002637643886446186,
    0.08327560024912702, -0.24675547842259996, 0.08327560024912702, 0.07553342426224673,
]  # fmt: skip


def logits() -> torch.Tensor:
    """Of small and large scale, of both signs, and zero."""
    scale = torch.tensor([[1.0], [100.0], [0.01]], dtype=torch.float64)
    return (((torch.arange(12, dtype=torch.float64).reshape(3, 4) * 37) % 11 - 5) * scale).requires_grad_()


def test_authors_loss_and_gradient():
    x = logits()
    loss = stablemax_cross_entropy(x, TARGET)
    loss.backward()
    assert loss.item() == pytest.approx(LOSS, abs=1e-12)
    torch.testing.assert_close(x.grad, torch.tensor(GRADIENT, dtype=torch.float64).view(3, 4), rtol=0, atol=1e-12)


@pytest.mark.parametrize("dim", [0, 1, -1])
def test_definition(dim: int):
    x = logits().detach()
    s = x.clone().apply_(lambda value: value + 1 if value >= 0 else 1 / (1 - value))
    torch.testing.assert_close(stablemax(x, dim), s / s.sum(dim, keepdim=True), rtol=1e-13, atol=0)
    torch.testing.assert_close(log_stablemax(x, dim).exp().sum(dim), torch.ones_like(x.sum(dim)))


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0, -1e300, 1e300])
def test_gradient_is_finite_everywhere(value: float):
    x = torch.tensor([value, 0.0], dtype=torch.float64, requires_grad=True)
    log_stablemax(x)[1].backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()
    if abs(value) <= 1:
        term = 1 + value if value >= 0 else 1 / (1 - value)
        assert float(x.grad[1]) == pytest.approx(term / (1 + term))


def test_shapes_and_options_are_those_of_cross_entropy():
    target = torch.tensor([[0, 2], [1, -100]])
    x = torch.sin(torch.arange(12.0)).reshape(2, 3, 2)
    each = stablemax_cross_entropy(x, target, reduction="none")
    assert each.shape == cross_entropy(x, target, reduction="none").shape
    assert each[1, 1] == 0
    assert stablemax_cross_entropy(x, target).item() == pytest.approx(each.sum().item() / 3)
    assert stablemax_cross_entropy(x, target, reduction="sum").item() == pytest.approx(each.sum().item())
    assert each[0, 1].item() == pytest.approx(stablemax_cross_entropy(x[0, :, 1], torch.tensor(2)).item())
    assert stablemax_cross_entropy(x, target, dtype=torch.float32).dtype == torch.float32


def test_large_logits_keep_a_gradient():
    x = torch.tensor([[1000.0, -1000.0, 0.0]], requires_grad=True)
    (gone,) = torch.autograd.grad(cross_entropy(x, torch.tensor([0])), x)
    (left,) = torch.autograd.grad(stablemax_cross_entropy(x, torch.tensor([0])), x)
    assert not gone.any()
    assert (left != 0).all()
    assert left.dtype == torch.float32


def test_bad_arguments_are_named():
    x = torch.zeros(2, 3)
    for match, target, options in (
        ("target", torch.zeros(2, 3), {}),
        ("reduction", torch.tensor([0, 1]), {"reduction": "max"}),
        ("dtype", torch.tensor([0, 1]), {"dtype": torch.int64}),
    ):
        with pytest.raises(InputError, match=match):
            stablemax_cross_entropy(x, target, **options)  # type: ignore[arg-type]
    assert math.isnan(stablemax_cross_entropy(torch.tensor([[math.nan, 0.0]]), torch.tensor([1])).item())
