"""MeZO and ZO-AdaMU against a plain reference, and how they leave the parameters."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import GrokfastEMA, MeZO, NonFiniteGradientError, ZOAdaMU
from hasten.optim.zeroth_order.probes import source
from hasten.optim.zeroth_order.zo_adamu import annealed

BOTH = pytest.mark.parametrize("rule", [MeZO, ZOAdaMU])


def parameters() -> list[nn.Parameter]:
    return [
        nn.Parameter(torch.linspace(-1, 2, 6).double().reshape(2, 3)),
        nn.Parameter(torch.tensor([0.5, -2.0]).double()),
    ]


def bowl(params: list[Any]) -> Tensor:
    return sum((param**4 / 4 + (1 + place) * param.square()).sum() for place, param in enumerate(params))  # type: ignore[return-value]


def reference(rule: type, steps: int, lr: float, eps: float, warm: int, total: int, decay: float) -> list[Tensor]:
    """The formulas on lists of tensors, with the weights kept as the published trainer keeps them."""
    x = [param.detach().clone() for param in parameters()]
    history = [torch.zeros_like(p) for p in x]
    end = int(0.8 * total)
    period = dict.fromkeys((1.0, 0.1, 1.5), float(total))
    for s in range(steps):
        weight = {}
        for speed in period:
            if s < warm:
                weight[speed] = 1.0
            elif s < end:
                weight[speed] = 0.5 * (1 + math.cos(math.pi * (s - warm) / period[speed]))
                period[speed] -= speed * (total - end) / (end - warm)
            else:
                weight[speed] = 0.5 * (1 + math.cos(math.pi * (end - warm) / period[speed]))
        draw, u, v = source(0, 0, s), [], []
        for p, h in zip(x, history):
            if rule is MeZO:
                u.append(draw(p))
                v.append(torch.ones_like(p))
                continue
            fresh = math.sqrt(weight[1.0]) * draw(p)
            past = h + math.sqrt(1 - weight[1.0]) * draw(p)
            u.append(weight[0.1] * fresh + (1 - weight[0.1]) * past)
            v.append(weight[1.5] * fresh**2 + (1 - weight[1.5]) * past**2 + 1e-8)
        up, down = (float(bowl([p + side * eps * d for p, d in zip(x, u)])) for side in (1, -1))
        slope = (up - down) / (2 * eps)
        x = [p - lr * (slope * d / second.sqrt() + decay * p) for p, d, second in zip(x, u, v)]
        history = [math.copysign(1, slope) * d for d in u]
    return x


@BOTH
@pytest.mark.parametrize("exact", [True, False])
@pytest.mark.parametrize("decay", [0.0, 0.3])
def test_follows_the_formulas(rule: type, exact: bool, decay: float):
    params = parameters()
    annealing = {"total_steps": 30, "warm": 4} if rule is ZOAdaMU else {}
    optimizer = rule(params, lr=1e-3, eps=1e-3, weight_decay=decay, exact=exact, **annealing)
    for _ in range(30):
        optimizer.step(lambda: bowl(params))
    # Ours multiplies by 1 - lr * decay before the step along the direction, the formula subtracts both at once.
    for ours, theirs in zip(params, reference(rule, 30, 1e-3, 1e-3, 4, 30, decay)):
        torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=1e-9)


def test_before_the_momentum_it_is_mezo_along_signs():
    """With warm = total the step is r z / |z|."""
    params, twin = parameters(), parameters()
    optimizer = ZOAdaMU(params, 10, lr=1e-3, warm=10)
    for s in range(10):
        optimizer.step(lambda: bowl(params))
        draw = source(0, 0, s)
        z = []
        for p in twin:
            z.append(draw(p))
            draw(p)
        up, down = (float(bowl([p.detach() + side * 1e-3 * d for p, d in zip(twin, z)])) for side in (1, -1))
        for p, d in zip(twin, z):
            p.data.sub_(1e-3 * (up - down) / 2e-3 * d / d.abs())
    for ours, theirs in zip(params, twin):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6)


@pytest.mark.parametrize("speed", [1.0, 0.1, 1.5])
def test_weights_fall_from_one_and_stay(speed: float):
    group = {"total_steps": 100, "warm": 10, "anneal_end": 0.8}
    values = [annealed(group, t, speed) for t in range(1, 101)]
    assert values[:11] == [1.0] * 11
    assert all(a > b for a, b in pairwise(values[10:81])) if speed <= 1 else min(values) >= 0
    assert len(set(values[80:])) == 1
    assert all(0 <= value <= 1 for value in values)
    assert annealed({**group, "warm": 100}, 100, speed) == 1.0


@BOTH
def test_descends(rule: type):
    params = parameters()
    start = float(bowl(params).detach())
    optimizer = rule(params, lr=1e-2, **({"total_steps": 300, "warm": 300} if rule is ZOAdaMU else {}))
    for _ in range(300):
        optimizer.step(lambda: bowl(params))
    assert float(bowl(params).detach()) < 0.1 * start


@BOTH
@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("call", [1, 2])
def test_an_infinite_loss_in_one_probe_changes_nothing(rule: type, bad: float, call: int):
    params = [nn.Parameter(torch.randn(50, generator=torch.Generator().manual_seed(0)))]
    calls: list[int] = []

    def closure() -> Tensor:
        calls.append(1)
        return params[0].square().sum() * (bad if len(calls) == call else 1.0)

    before = params[0].detach().clone()
    lenient = rule(params, lr=1.0, on_nonfinite="skip")
    lenient.step(closure)
    assert torch.equal(params[0], before)
    assert lenient.skipped == 1
    calls.clear()
    with pytest.raises(NonFiniteGradientError, match="nothing was changed"):
        rule(params, lr=1.0).step(closure)
    assert torch.equal(params[0], before)


@BOTH
@pytest.mark.parametrize("exact", [True, False])
def test_an_error_in_the_closure_puts_the_parameters_back(rule: type, exact: bool):
    params, calls = parameters(), []

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stop")
        return bowl(params)

    with pytest.raises(RuntimeError, match="stop"):
        rule(params, exact=exact).step(closure)
    for param, start in zip(params, parameters()):
        torch.testing.assert_close(param, start, rtol=0, atol=0 if exact else 1e-15)


@BOTH
def test_dropout_and_batches_are_the_same_for_both_probes(rule: type):
    params, drawn = parameters(), []

    def closure() -> Tensor:
        drawn.append(float(torch.rand(())))
        return bowl(params)

    optimizer = rule(params)
    optimizer.step(closure)
    optimizer.step(closure)
    assert drawn[0] == drawn[1] != drawn[2] == drawn[3]


def test_groups_have_probes_of_their_own_length():
    """The expectation over directions is the gradient of each group, whatever the lengths."""
    params = [nn.Parameter(torch.zeros(1, dtype=torch.float64)), nn.Parameter(torch.zeros(1, dtype=torch.float64))]
    groups = [{"params": params[:1], "eps": 1e-2}, {"params": params[1:], "eps": 1e-4}]
    optimizer = MeZO(groups, lr=1e-3)
    for _ in range(2000):
        optimizer.step(lambda: (3 * params[0] - 0.02 * params[1]).sum())
    assert float(params[0].detach()) == pytest.approx(-6.0, rel=0.15)


def test_gradients_are_neither_needed_nor_made():
    params = parameters()
    optimizer = MeZO(params)

    def closure() -> Tensor:
        loss = bowl(params)
        assert not loss.requires_grad
        return loss

    optimizer.step(closure)
    assert all(param.grad is None for param in params)
    with pytest.raises(InputError, match="evaluates"):
        GrokfastEMA(optimizer)


@BOTH
@pytest.mark.parametrize(("option", "value"), [("eps", 0.0), ("seed", -1), ("exact", "no"), ("weight_decay", -1.0)])
def test_bad_arguments_are_named(rule: type, option: str, value: Any):
    with pytest.raises(InputError, match=option):
        rule(parameters(), **{option: value})


@pytest.mark.parametrize(("option", "value"), [("total_steps", 0), ("warm", -1), ("anneal_end", 0.0)])
def test_bad_annealing_is_named(option: str, value: Any):
    with pytest.raises(InputError, match=option):
        ZOAdaMU(parameters(), **{option: value})


@BOTH
def test_a_closure_is_needed(rule: type):
    with pytest.raises(InputError, match="needs a closure"):
        rule(parameters()).step()
