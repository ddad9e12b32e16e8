"""Random scaling: the numbers it draws, and what is left of it when they are taken out."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recorded_stream import parameters, set_gradients
from torch import nn

from hasten.core.errors import InputError
from hasten.optim import RandomScaledSGDM, RandomScaling
from hasten.optim.filters import random_scaling
from hasten.optim.filters.random_scaling import exponential


def trajectory(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], last: int = 20) -> list[torch.Tensor]:
    for t in range(1, last + 1):
        set_gradients(params, t)
        optimizer.step()
    return [param.detach().clone() for param in params]


def test_draws_are_exponential_and_independent():
    draws = torch.tensor([exponential(seed, t) for seed in range(4) for t in range(1500)], dtype=torch.float64)
    count = len(draws)
    assert float(draws.mean()) == pytest.approx(1, abs=4 / math.sqrt(count))
    assert float(draws.square().mean()) == pytest.approx(2, abs=4 * math.sqrt(20 / count))
    for lag in (1, 2, 1500):
        correlation = float(((draws[lag:] - 1) * (draws[:-lag] - 1)).mean())
        assert abs(correlation) < 4 / math.sqrt(count), f"steps {lag} apart"
    ordered = draws.sort().values
    even = torch.arange(1, count + 1) / count
    assert float((1 - torch.exp(-ordered) - even).abs().max()) < 1.63 / math.sqrt(count), "Kolmogorov-Smirnov at 1 %"


def test_one_number_multiplies_the_whole_update():
    plain, scaled = parameters(), parameters()
    sgd, behind = (torch.optim.SGD(params, lr=0.1, momentum=0.9) for params in (plain, scaled))
    RandomScaling(behind, seed=3)
    for t in range(1, 6):
        starts = [param.detach().clone() for param in scaled]
        before = [param.detach().clone() for param in plain]
        for params, optimizer in ((plain, sgd), (scaled, behind)):
            set_gradients(params, t)
            optimizer.step()
        for start, end, was, now in zip(starts, scaled, before, plain):
            torch.testing.assert_close(end - start, (now - was) * exponential(3, t), rtol=1e-12, atol=1e-14)


def test_per_tensor_numbers_differ():
    params = [nn.Parameter(torch.zeros(2)) for _ in range(2)]
    optimizer = torch.optim.SGD(params, lr=1.0)
    RandomScaling(optimizer, per="tensor")
    for param in params:
        param.grad = -torch.ones(2)
    optimizer.step()
    for place, param in enumerate(params):
        torch.testing.assert_close(param.detach(), torch.full((2,), exponential(0, 1, place)))
    assert params[0][0] != params[1][0]


def test_a_seed_gives_a_run():
    for make in (lambda p, s: RandomScaledSGDM(p, seed=s), _behind):
        runs = []
        for seed in (1, 1, 2):
            params = parameters()
            runs.append(trajectory(make(params, seed), params))
        first, again, other = runs
        assert all(map(torch.equal, first, again))
        assert not torch.equal(first[0], other[0])


def _behind(params: Any, seed: int) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(params, lr=0.1)
    RandomScaling(optimizer, seed=seed)
    return optimizer


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_with_all_numbers_one_it_is_sgd_with_dampening(monkeypatch: pytest.MonkeyPatch, weight_decay: float):
    monkeypatch.setattr(random_scaling, "exponential", lambda *seed: 1.0)
    ours, theirs = parameters(), parameters()
    sgd = torch.optim.SGD(theirs, lr=0.2, momentum=0.9, dampening=0.9, weight_decay=weight_decay)
    for param in theirs:
        sgd.state[param]["momentum_buffer"] = torch.zeros_like(param)
    found = trajectory(RandomScaledSGDM(ours, lr=0.2, weight_decay=weight_decay), ours, 100)
    torch.testing.assert_close(found, trajectory(sgd, theirs, 100), rtol=0, atol=1e-13)


def test_all_groups_share_the_number_even_one_that_joins_late():
    params = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2)]
    optimizer = RandomScaledSGDM(params[:1], lr=1.0, momentum=0.0)
    for t in range(1, 5):
        if t == 3:
            optimizer.add_param_group({"params": params[1:]})
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.full_like(param, -1.0)
        optimizer.step()
        for place, (param, was) in enumerate(zip(params, before)):
            moved = exponential(0, t) if place == 0 or t >= 3 else 0.0
            torch.testing.assert_close(param - was, torch.full_like(was, moved))


@pytest.mark.parametrize(
    ("make", "hyper"),
    [(RandomScaling, {"seed": -1}), (RandomScaling, {"per": "entry"}), (RandomScaledSGDM, {"momentum": 1.0})],
)
def test_bad_arguments_are_named(make: Any, hyper: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(hyper))):
        make(None if make is RandomScaling else parameters(), **hyper)
