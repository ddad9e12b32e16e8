"""Adam on blocks against plain means, and against Adam."""

from __future__ import annotations

from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import BlockwiseAdam


def test_blocks_of_one_are_adam() -> None:
    params, twins = ref.start(), ref.start()
    ours = ref.drive(BlockwiseAdam(params, lr=0.01, blocks=1, weight_decay=0.1), params)
    theirs = ref.drive(torch.optim.AdamW(twins, lr=0.01, weight_decay=0.1), twins)
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("blocks", ["row", "tensor", "all", 5])
def test_blocks_share_the_mean_square(blocks: Any) -> None:
    params = ref.start()
    points = [param.detach().clone() for param in params]
    ms, vs = ([torch.zeros_like(p) for p in points] for _ in range(2))
    optimizer = BlockwiseAdam(params, lr=0.01, blocks=blocks)
    for t in range(1, 20):
        grads = [torch.zeros_like(p) if grad is None else grad for p, grad in zip(points, ref.stream(t))]
        means = [shared(grad, blocks) for grad in grads]
        if blocks == "all":
            mean = torch.cat([grad.flatten() for grad in grads]).square().mean()
            means = [torch.full_like(grad, float(mean)) for grad in grads]
        for i, (param, grad) in enumerate(zip(params, grads)):
            param.grad = grad
            ms[i] = 0.9 * ms[i] + 0.1 * grad
            vs[i] = 0.999 * vs[i] + 0.001 * means[i]
            points[i] -= 0.01 / (1 - 0.9**t) * ms[i] / ((vs[i] / (1 - 0.999**t)).sqrt() + 1e-8)
        optimizer.step()
    for param, point in zip(params, points):
        torch.testing.assert_close(param.detach(), point, rtol=0.0, atol=1e-12)


def shared(grad: Tensor, blocks: int | str) -> Tensor:
    if blocks == "row" and grad.ndim:
        return torch.stack([torch.full_like(row, float(row.square().mean())) for row in grad])
    if isinstance(blocks, int):
        parts = [torch.full_like(part, float(part.square().mean())) for part in grad.flatten().split(blocks)]
        return torch.cat(parts).view_as(grad)
    return torch.full_like(grad, float(grad.square().mean()))


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_know_the_length_of_blocks() -> None:
    ends = []
    for backend in ("compile", "eager"):
        x = nn.Parameter(torch.ones(7))
        optimizer = BlockwiseAdam([x], blocks=3, backend=backend)
        for t in range(3):
            x.grad = torch.sin(torch.arange(7.0) + t)
            optimizer.step()
        ends.append(x.detach())
    torch.testing.assert_close(ends[0], ends[1])


@pytest.mark.parametrize("blocks", ["column", 0])
def test_bad_blocks_are_refused(blocks: Any) -> None:
    with pytest.raises(InputError, match="blocks"):
        BlockwiseAdam(ref.start(), blocks=blocks)
