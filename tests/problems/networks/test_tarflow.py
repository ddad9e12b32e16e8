"""The autoregressive flow: causal, invertible, with the right determinant; its training step learns."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import InputError
from hasten.problems.networks.tarflow import TinyTarFlow, train_digits


def flow(**options: int) -> TinyTarFlow:
    torch.manual_seed(0)
    made = TinyTarFlow(size=4, width=16, blocks=2, layers=1, heads=2, **options).double()
    for block in made.blocks:
        torch.nn.init.normal_(block.final.weight, std=0.3)  # type: ignore[union-attr,arg-type]
    return made


def test_is_the_identity_before_training() -> None:
    made = TinyTarFlow(size=4, width=16, blocks=2, layers=1, heads=2)
    x = torch.randn(3, 1, 4, 4)
    z, volume = made(x)
    torch.testing.assert_close(made.unpatchify(z), x)
    assert torch.equal(volume, torch.zeros(3))


@pytest.mark.parametrize("patch", [1, 2])
def test_determinant_is_that_of_the_jacobian(patch: int) -> None:
    made = flow(patch=patch)
    x = torch.randn(1, 1, 4, 4, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: made(x)[0].flatten(), x).reshape(16, 16)
    torch.testing.assert_close(made(x)[1][0], torch.linalg.slogdet(jacobian).logabsdet)


@pytest.mark.parametrize("index", [0, 1])
def test_blocks_are_causal_in_their_order(index: int) -> None:
    block = flow().blocks[index]
    x = torch.randn(1, 16, 1, dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: block(x)[0].flatten(), x).reshape(16, 16)
    if index == 1:
        jacobian = jacobian.flip(0, 1)
    below = torch.ones(16, 16, dtype=torch.bool).tril(-1)
    assert float(jacobian.triu(1).abs().max()) == 0.0
    assert float(jacobian[below].abs().min()) > 0.0


def test_segments_with_memory_are_the_whole_pass() -> None:
    block = flow().blocks[0]
    x = torch.randn(2, 16, 1, dtype=torch.float64)
    mu, s, _ = block.extend(x, 0, None)  # type: ignore[operator]
    memory, parts = None, []
    for begin, end in ((0, 5), (5, 6), (6, 16)):
        *part, memory = block.extend(x[:, begin:end], begin, memory)  # type: ignore[operator]
        parts.append(part)
    torch.testing.assert_close(torch.cat([part[0] for part in parts], 1), mu)
    torch.testing.assert_close(torch.cat([part[1] for part in parts], 1), s)


def test_training_lowers_the_loss() -> None:
    torch.manual_seed(0)
    losses: list[float] = []
    made = TinyTarFlow(patch=4, width=16, blocks=2, layers=1, heads=2)
    train_digits(made, lambda step, steps, loss: losses.append(loss), steps=30, batch=32)
    assert len(losses) == 30
    assert sum(losses[-5:]) / 5 < sum(losses[:5]) / 5 - 0.2


def test_refuses_bad_sizes() -> None:
    with pytest.raises(InputError, match="multiple of patch"):
        TinyTarFlow(size=8, patch=3)
    with pytest.raises(InputError, match="one of heads"):
        TinyTarFlow(width=10, heads=4)
