"""A list of tensors as one long vector: products, norms, and the undoing of a step, without putting it together."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch._utils import _unflatten_dense_tensors

from hasten.core.errors import InputError
from hasten.optim.layout import real, work_dtype


def dot(left: Sequence[Tensor], right: Sequence[Tensor]) -> float:
    """Inner product of two lists of tensors of the same shapes; 0 for empty lists."""
    return dots((left, right))[0]


def dots(*pairs: tuple[Sequence[Tensor], Sequence[Tensor]]) -> list[float]:
    """Several inner products at once: on an accelerator they cost one wait together."""
    found = _collect([[_product(a, b, None) for a, b in zip(*pair, strict=True)] for pair in pairs])
    if all(map(math.isfinite, found)):
        return found
    # Single precision overflows where the gradients themselves are still finite.
    return _collect([[_product(a, b, torch.float64) for a, b in zip(*pair)] for pair in pairs])


def norm(tensors: Sequence[Tensor], order: float = 2.0) -> float:
    """Norm of all entries together (`order` 2, 1 or inf); 0 for an empty list."""
    parts = [
        torch.linalg.vector_norm(_seen(x), order, dtype=work_dtype(x.dtype)).double() for x in tensors if x.numel()
    ]
    if not parts:
        return 0.0
    return float(torch.linalg.vector_norm(torch.stack([part.to(parts[0].device) for part in parts]), order))


def flatten(tensors: Sequence[Tensor]) -> Tensor:
    """All entries as one vector; a copy, except that a single contiguous tensor is only seen anew."""
    flat = [_seen(tensor).reshape(-1) for tensor in tensors]
    return flat[0] if len(flat) == 1 else torch.cat(flat)


def unflatten(vector: Tensor, likes: Sequence[Tensor]) -> list[Tensor]:
    """Views of a vector in the shapes of `likes`, the inverse of `flatten` for real tensors.

    Raises:
        InputError: their entries do not add up to its length.
    """
    count = sum(like.numel() for like in likes)
    if vector.shape != (count,):
        raise InputError(f"the tensors have {count} entries in all, the vector is shaped {tuple(vector.shape)}")
    return list(_unflatten_dense_tensors(vector, likes))


def copies(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Values to come back to with `restore`."""
    return [tensor.detach().clone() for tensor in tensors]


@torch.no_grad()
def restore(tensors: Sequence[Tensor], saved: Sequence[Tensor]) -> None:
    """Undo: put back, bit for bit, what `copies` took."""
    for tensor, old in zip(tensors, saved, strict=True):
        tensor.copy_(old)


@torch.no_grad()
def move(tensors: Sequence[Tensor], scale: float, direction: Sequence[Tensor]) -> None:
    """`x <- x + scale * direction`, in place."""
    for tensor, d in zip(tensors, direction, strict=True):
        tensor.add_(d.to(tensor.dtype), alpha=scale)


def _collect(parts: Sequence[Sequence[Tensor]]) -> list[float]:
    sums = [torch.stack([part.to(row[0].device) for part in row]).sum() for row in parts if row]
    if not sums:
        return [0.0] * len(parts)
    known = iter(torch.stack([total.to(sums[0].device) for total in sums]).tolist())
    return [next(known) if row else 0.0 for row in parts]


def _product(a: Tensor, b: Tensor, dtype: torch.dtype | None) -> Tensor:
    dtype = dtype or torch.promote_types(work_dtype(a.dtype), work_dtype(b.dtype))
    a, b = _seen(a), _seen(b)
    # Both seen in the order of one memory: no copy where the strides agree.
    if a.stride() == b.stride() and not a.is_contiguous():
        axes = sorted(range(a.ndim), key=a.stride, reverse=True)
        a, b = a.permute(axes), b.permute(axes)
    return torch.dot(a.reshape(-1).to(dtype), b.reshape(-1).to(dtype)).double()


def _seen(tensor: Tensor) -> Tensor:
    return real(tensor.detach())
