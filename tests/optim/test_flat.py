"""Lists of tensors treated as one vector."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.optim import flat


def tensors(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    made = [torch.randn(shape, generator=generator, dtype=dtype) for shape in [(3, 4), (), (0,), (2, 3, 2, 2)]]
    return [*made, torch.randn(4, 6, generator=generator, dtype=dtype)[:, ::2]]


def joined(parts: list[Tensor]) -> Tensor:
    return torch.cat([part.reshape(-1) for part in parts])


def test_products_and_norms_are_those_of_the_joined_vector():
    a, b = tensors(0), tensors(1)
    assert flat.dot(a, b) == pytest.approx(float(joined(a) @ joined(b)), rel=1e-12)
    assert flat.dots((a, b), (a, a)) == pytest.approx([flat.dot(a, b), flat.norm(a) ** 2], rel=1e-12)
    for order in (1, 2, float("inf")):
        assert flat.norm(a, order) == pytest.approx(float(joined(a).norm(order)), rel=1e-12)
    assert (flat.dot([], []), flat.norm([]), flat.dots(([], []), (a, a))[0]) == (0.0, 0.0, 0.0)


def test_memory_order_does_not_matter():
    a, b = torch.randn(2, 3, 4, 5), torch.randn(2, 3, 4, 5)
    turned = [x.to(memory_format=torch.channels_last) for x in (a, b)]
    for left in (a, turned[0]):
        for right in (b, turned[1]):
            assert flat.dot([left], [right]) == pytest.approx(flat.dot([a], [b]), rel=1e-5)


def test_large_single_precision_entries_do_not_overflow():
    x = torch.full((8,), 3e38)
    assert flat.dot([x], [x]) == pytest.approx(8 * float(x[0]) ** 2)


def test_complex_entries_count_as_pairs():
    z = torch.tensor([3 + 4j, 1 - 2j])
    assert flat.norm([z]) == pytest.approx(30**0.5)
    assert flat.dot([z], [z]) == pytest.approx(30)


def test_flatten_and_unflatten():
    parts = tensors(2)
    vector = flat.flatten(parts)
    for part, view in zip(parts, flat.unflatten(vector, parts), strict=True):
        assert torch.equal(part, view)
        assert not view.numel() or view.untyped_storage().data_ptr() == vector.untyped_storage().data_ptr()
    single = torch.randn(3, 4)
    assert flat.flatten([single]).data_ptr() == single.data_ptr()
    with pytest.raises(InputError, match="27"):
        flat.unflatten(vector[:27], parts)


def test_undo_is_bit_for_bit():
    parts = [torch.nn.Parameter(part) for part in tensors(3, torch.float32)]
    before = flat.copies(parts)
    flat.move(parts, 0.1, tensors(4))
    assert not torch.equal(parts[0], before[0])
    flat.restore(parts, before)
    assert all(torch.equal(part, old) for part, old in zip(parts, before))
