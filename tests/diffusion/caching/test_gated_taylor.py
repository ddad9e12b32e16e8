"""Confidence-gated Taylor: when it trusts, what it runs, what it stores."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, ConfidenceGatedTaylor, Denoiser, FlowMatching, sample
from hasten.diffusion.caching.gated_taylor import error


def draw(dit: Any, cache: Any, steps: int = 20) -> Tensor:
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return sample(
        Denoiser(dit, FlowMatching(), "velocity"), noise=noise, sampler=DDIM(grid="uniform"), steps=steps, cache=cache
    )


class Chain(nn.Module):
    """Three blocks, the first of which follows a line in time until it jumps."""

    class Block(nn.Module):
        def __init__(self, jump: float) -> None:
            super().__init__()
            self.jump, self.runs = jump, 0

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.runs += 1
            return x + t + self.jump * (t < 0.35)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Chain.Block(jump) for jump in (5.0, 0.0, 0.0))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, t)
        return x


def test_trusts_until_the_first_block_surprises() -> None:
    network, x = Chain(), torch.ones(1, 2, dtype=torch.float64)
    plain = [Chain()(x, torch.tensor([t], dtype=torch.float64)) for t in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2)]
    with ConfidenceGatedTaylor(threshold=1e-6, warmup=2).attached(network) as cache:
        outputs, full = [], []
        for t in (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
            outputs.append(network(x, torch.tensor([t], dtype=torch.float64)))
            full.append(cache.is_full)
    assert full == [True, True, False, False, False, False, False, True, True]
    torch.testing.assert_close(outputs, plain)
    assert [block.runs for block in network.blocks] == [9, 4, 4]
    assert cache.stored == 2 * 2 * 2


def test_a_full_pass_comes_after_so_many_forecasts(dit: Any) -> None:
    cache = ConfidenceGatedTaylor(threshold=100.0, warmup=3, max_skip=4)
    draw(dit, cache, steps=20)
    assert (cache.full, cache.forecasts) == (3 + 3, 14)
    never = ConfidenceGatedTaylor(threshold=100.0, max_skip=0)
    assert torch.equal(draw(dit, never), draw(dit, None))


def test_a_lower_threshold_makes_more_passes_and_smaller_errors(dit: Any) -> None:
    plain = draw(dit, None)
    caches = [ConfidenceGatedTaylor(threshold=threshold) for threshold in (0.0, 0.08, 0.3)]
    errors = [float((draw(dit, cache) - plain).norm()) for cache in caches]
    passes = [cache.full for cache in caches]
    assert passes == sorted(passes, reverse=True)
    assert passes[0] == 20
    assert passes[-1] < 15
    assert errors[0] == 0.0
    assert errors == sorted(errors)


@pytest.mark.parametrize("order", [0, 1, 2])
def test_memory_does_not_grow_with_depth(dit: Any, order: int) -> None:
    cache = ConfidenceGatedTaylor(order=order, threshold=100.0)
    draw(dit, cache)
    assert cache.stored == 2 * (order + 1) * 2 * 16 * 16


def test_error_is_relative_and_takes_tuples() -> None:
    a, b = torch.tensor([1.0, -3.0]), torch.tensor([2.0, -2.0])
    assert error(a, b) == pytest.approx(0.5)
    assert error((a, None, b), (b, None, b)) == pytest.approx(0.25)


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("order", lambda: ConfidenceGatedTaylor(order=-1)),
        ("threshold", lambda: ConfidenceGatedTaylor(threshold=-0.1)),
        ("warmup", lambda: ConfidenceGatedTaylor(warmup=0)),
        ("max_skip", lambda: ConfidenceGatedTaylor(max_skip=-1)),
    ],
)
def test_refusals(match: str, make: Any) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_one_block_is_refused() -> None:
    network = Chain()
    network.blocks = network.blocks[:1]
    with pytest.raises(InputError, match="two blocks"):
        ConfidenceGatedTaylor().attach(network)
