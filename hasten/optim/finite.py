"""Whether gradients are finite, at the price of one pass over them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.optim import sharded
from hasten.optim.layout import Batch


def first_nonfinite(work: Sequence[tuple[Batch, list[Tensor]]]) -> tuple[dict[str, Any], Tensor] | None:
    """The first parameter, with its group, whose gradient has infinite or NaN entries; the same in all processes."""
    for batch, grads in work:
        # An overflow of finite entries makes the sum infinite too; then every tensor is looked at.
        if sharded.agree(bool(torch.isfinite(_sum_of_squares(grads))), batch.owners):
            continue
        for param, grad in zip(batch.owners, grads):
            if not sharded.agree(bool(torch.isfinite(grad).all()), [param]):
                return batch.group, param
    return None


def _sum_of_squares(grads: Sequence[Tensor]) -> Tensor:
    parts = []
    rest = []
    for grad in grads:
        if grad.device.type == "cpu" and grad.dtype == torch.float32 and grad.is_contiguous() and grad.numel() > 2**14:
            flat = grad.view(-1)
            parts.append(torch.dot(flat, flat))
        else:
            rest.append(grad)
    if rest:
        parts += torch._foreach_norm(rest)  # pyright: ignore[reportPrivateImportUsage]
    return torch.stack([part.float() for part in parts]).sum()
