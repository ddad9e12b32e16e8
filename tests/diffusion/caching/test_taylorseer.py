"""TaylorSeer: the published forecasts of a stream of features, its levels, its choice of modules, planned passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, Denoiser, FlowMatching, TaylorSeer, sample

PUBLISHED = {
    (3, 2): [
        [1.28843537448, 0.481636441363, -1.8],
        [1.93265306171, 0.222454662045, -2.7],
        [0.107362604529, 0.173426282833, -2.83333333333],
        [-0.369361007631, 0.083205168107, -3.13333333333],
        [-1.47761126831, 0.077370846206, -1.9],
        [-2.08479339352, 0.0612726225047, -1.5],
        [1.36773744551, 0.0314566386158, 0.8],
    ],
    (4, 3): [
        [1.28843537448, 0.481636441363, -1.8],
        [1.93265306171, 0.222454662045, -2.7],
        [2.57687074895, -0.0367271172731, -3.6],
        [-0.711154445918, 0.109928115538, -2.8375],
        [-1.29476764314, 0.0291660119743, -3.05],
        [-2.10162281935, -0.0191561505435, -3.1375],
        [0.164144552903, 0.0391198855591, -0.396875],
        [0.473738672188, 0.0311870397673, 0.325],
    ],
}
"""Forecasts of (sin 0.7k, exp -0.3k, 0.1k^2 - k) over 12 steps, by interval and order, from the published functions
`derivative_approximation` and `taylor_formula` (Shenyi-Z/TaylorSeer, TaylorSeer-DiT, commit 288776d)."""


class Clock(nn.Module):
    """A network of one block with one module, whose output is a function of the number of the step."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.attn = Clock.Feature()

        def forward(self, x: Tensor) -> Tensor:
            return self.attn(x)

    class Feature(nn.Module):
        step = 0

        def forward(self, x: Tensor) -> Tensor:
            k = self.step
            return torch.tensor([[math.sin(0.7 * k), math.exp(-0.3 * k), 0.1 * k * k - k]], dtype=torch.float64)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Clock.Block()])

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.blocks[0](x)


@pytest.mark.parametrize(("interval", "order"), list(PUBLISHED))
@pytest.mark.parametrize("level", ["module", "last"])
def test_forecasts_are_the_published_ones(interval: int, order: int, level: str) -> None:
    network = Clock()
    with TaylorSeer(interval, order, level=level).attached(network) as cache:
        found = []
        for step in range(12):
            Clock.Feature.step = step
            output = network(torch.zeros(1, 3), torch.tensor([1.0 - 0.05 * step]))
            if not cache.is_full:
                found.append(output)
    expected = torch.tensor(PUBLISHED[interval, order], dtype=torch.float64)
    torch.testing.assert_close(torch.cat(found), expected, atol=1e-10, rtol=1e-10)


def draw(dit: Any, cache: Any, steps: int = 24) -> Tensor:
    noise = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return sample(
        Denoiser(dit, FlowMatching(), "velocity"), noise=noise, sampler=DDIM(grid="uniform"), steps=steps, cache=cache
    )


@pytest.mark.parametrize("level", ["module", "block", "last"])
def test_levels_store_less_and_forecast_better_than_reuse(dit: Any, level: str) -> None:
    plain = draw(dit, None)
    errors = []
    for order in (0, 2):
        cache = TaylorSeer(2, order, level=level)
        errors.append(float((draw(dit, cache) - plain).norm()))
        tensors = {"module": 6, "block": 3, "last": 1}[level]
        assert cache.stored == tensors * (order + 1) * 2 * 16 * 16
    assert 0 < errors[1] < 0.85 * errors[0]


def test_only_named_modules_are_forecast(dit: Any) -> None:
    ran: list[str] = []
    handles = [
        dit.blocks[1].get_submodule(name).register_forward_hook(lambda *args, name=name: ran.append(name))
        for name in ("attn", "mlp")
    ]
    cache = TaylorSeer(4, modules="attn", blocks="blocks")
    draw(dit, cache, steps=10)
    assert cache.stored == 3 * 3 * 2 * 16 * 16
    assert (ran.count("attn"), ran.count("mlp")) == (10, 10), "hooks see the forecasts"
    for handle in handles:
        handle.remove()


def test_forecasts_do_not_run_the_modules(dit: Any) -> None:
    counts = {"inner": 0}

    def count(*args: Any) -> None:
        counts["inner"] += 1

    handle = dit.blocks[2].attn.qkv.register_forward_hook(count)
    cache = TaylorSeer(5)
    draw(dit, cache, steps=22)
    assert counts["inner"] == cache.full == 6
    handle.remove()


def test_tuples_of_tensors_are_forecast_one_by_one() -> None:
    class Double(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor, None, Tensor]:
            return t * x, None, -t * x

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.ModuleList([nn.ModuleDict({"attn": Double()})])

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            first, nothing, second = self.layers[0]["attn"](x, t.double())
            assert nothing is None
            return first - second

    network, x = Net(), torch.ones(1, 1, dtype=torch.float64)
    with TaylorSeer(3, 1).attached(network) as cache:
        found = [float(network(x, torch.tensor([1.0 - k / 16]))) for k in range(8)]
    assert found == pytest.approx([2 * (1.0 - k / 16) for k in range(8)])
    assert (cache.full, cache.stored) == (4, 4)


@pytest.mark.parametrize("interval", [1, 2, 3, 5])
@pytest.mark.parametrize("warmup", [1, 2, 4])
def test_planned_calls_make_the_passes(dit: Any, interval: int, warmup: int) -> None:
    for passes in (1, 2, 3, 6):
        cache = TaylorSeer(interval, 0, warmup)
        draw(dit, cache, cache.calls_for(passes))
        assert cache.full == passes
        draw(dit, cache, cache.calls_for(passes) + 1)
        assert cache.full == passes + 1


def test_a_chain_that_turns_round_starts_anew(dit: Any) -> None:
    """As in pipelines, which tell nobody when the next images begin; inversion, which climbs, is a chain as well."""
    down, up = [1.0, 0.8, 0.6, 0.4, 0.2], [0.2, 0.4, 0.6, 0.8, 1.0]
    x = torch.ones(1, 1, 8, 8)

    def full(times: list[float]) -> list[bool]:
        with torch.no_grad(), TaylorSeer(10, warmup=1).attached(dit) as cache:
            return [(dit(x, torch.tensor([t])), cache.is_full)[1] for t in times]

    assert full(down) == [True, False, False, False, False]
    assert full(down + down) == 2 * [True, False, False, False, False]
    assert full(up) == [True, True, False, False, False]
    assert full([0.2, *down]) == [True, True, True, False, False, False]


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("interval", lambda: TaylorSeer(interval=0)),
        ("order", lambda: TaylorSeer(order=-1)),
        ("warmup", lambda: TaylorSeer(warmup=0)),
        ("level", lambda: TaylorSeer(level="layer")),
        ("modules", lambda: TaylorSeer(level="last", modules="attn")),
    ],
)
def test_refusals(match: str, make: Any) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_blocks_that_change_the_shape_are_refused_at_level_block() -> None:
    network = Clock()
    with pytest.raises(InputError, match="block"), TaylorSeer(level="block").attached(network):
        network(torch.zeros(2, 5), torch.tensor([1.0]))
