"""One cycle against torch's, the range test, and the estimate of the best learning rate."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from recorded_stream import parameters
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from hasten.core.errors import InputError
from hasten.optim.schedules.one_cycle import OneCycle, RangeTest, lr_range_test, optimal_lr_estimate


def course(optimizer: torch.optim.Optimizer, schedule: Any, steps: int) -> list[tuple[float, float]]:
    """Learning rate and momentum of every step."""
    seen = []
    for _ in range(steps):
        group = optimizer.param_groups[0]
        seen.append((group["lr"], group["betas"][0] if "betas" in group else group.get("momentum", 0.0)))
        optimizer.step()
        schedule.step()
    return seen


@pytest.mark.parametrize("shape", ["linear", "cos"])
@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.SGD])
@pytest.mark.parametrize(("steps", "pct_up"), [(100, 0.45), (37, 0.3), (400, 0.5)])
def test_equals_the_three_phases_of_torch(shape: str, rule: Any, steps: int, pct_up: float):
    ours, theirs = rule(parameters(), lr=0.3), rule(parameters(), lr=0.3)
    cycle = OneCycle(ours, steps, max_lr=2.0, pct_up=pct_up, shape=shape)
    reference = OneCycleLR(
        theirs,
        max_lr=2.0,
        total_steps=steps,
        pct_start=pct_up,
        anneal_strategy=shape,  # type: ignore[arg-type]
        div_factor=10,
        final_div_factor=100,
        three_phase=True,
    )
    found, expected = course(ours, cycle, steps - 1), course(theirs, reference, steps - 1)
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-8)


def test_peak_is_the_optimizers_own_rate_unless_given():
    optimizer = torch.optim.SGD([{"params": parameters(), "lr": 3.0}, {"params": parameters()}], lr=1.0, momentum=0.5)
    cycle = OneCycle(optimizer, 100, cycle_momentum=None)
    rates = [[group["lr"] for group in optimizer.param_groups]]
    for _ in range(120):
        optimizer.step()
        cycle.step()
        rates.append([group["lr"] for group in optimizer.param_groups])
    assert [max(column) for column in zip(*rates)] == pytest.approx([3.0, 1.0])
    assert rates[0] == pytest.approx([0.3, 0.1])
    assert rates[-1] == pytest.approx([0.003, 0.001])
    assert rates[99] == pytest.approx(rates[-1])
    assert optimizer.param_groups[0]["momentum"] == 0.5


def test_one_peak_per_group():
    optimizer = torch.optim.SGD([{"params": parameters()}, {"params": parameters()}], lr=1.0)
    OneCycle(optimizer, 100, max_lr=[2.0, 4.0], div=4.0, cycle_momentum=(0.9, 0.8))
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.5, 1.0])
    assert [group["momentum"] for group in optimizer.param_groups] == [0.9, 0.9]


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_very_short_cycles(steps: int):
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    rates = [rate for rate, _ in course(optimizer, OneCycle(optimizer, steps), steps + 2)]
    assert all(0 < rate <= 1 for rate in rates)
    assert rates[-1] == pytest.approx(1e-3)


def line() -> tuple[nn.Linear, list[tuple[torch.Tensor, torch.Tensor]]]:
    torch.manual_seed(0)
    model = nn.Linear(4, 1).double()
    inputs = torch.randn(32, 4, dtype=torch.float64)
    return model, [(half, half.sum(1, keepdim=True)) for half in inputs.split(16)]


def test_range_test_finds_the_edge_and_leaves_the_network_alone():
    model, data = line()
    before = copy.deepcopy(model.state_dict())
    found = lr_range_test(
        model, nn.functional.mse_loss, data, 1e-3, 100.0, optimizer=lambda p: torch.optim.SGD(p, lr=1.0)
    )
    assert all(torch.equal(a, b) for a, b in zip(before.values(), model.state_dict().values()))
    # Descent on this quadratic is stable up to 2 / largest curvature.
    whole = torch.cat([inputs for inputs, _ in data])
    ones = torch.cat([whole, torch.ones(32, 1, dtype=torch.float64)], 1)
    edge = 2 / float(torch.linalg.eigvalsh(2 * ones.T @ ones / 32)[-1])
    assert 0.5 * edge < found.diverging < 5 * edge
    assert found.steepest < found.max_lr < found.diverging
    assert found.rates[0] == 1e-3
    assert found.losses[-1] > 4 * min(found.losses)


def test_range_test_without_an_edge():
    model, data = line()
    found = lr_range_test(model, nn.functional.mse_loss, iter(data * 5), 1e-6, 1e-5, steps=10)
    assert found.diverging == math.inf
    assert found.rates[-1] == pytest.approx(1e-5)
    assert len(found.losses) == 10
    assert RangeTest((0.1, 0.4), (1.0, 0.5), 0.1, math.inf).max_lr == pytest.approx(0.2)


def test_estimate_is_exact_on_a_quadratic_of_one_variable():
    rates = [0.1, 0.3, 0.2, 0.5]
    x = [torch.tensor(3.0, dtype=torch.float64)]
    for rate in rates:
        x.append(x[-1] - rate * 0.7 * x[-1])
    assert optimal_lr_estimate(x, rates).tolist() == pytest.approx([1 / 0.7] * 3, rel=1e-12)


def test_estimate_is_smoothed_ratio_of_absolute_sums():
    x = torch.tensor([[1.0, 2.0], [0.5, 1.5], [0.4, 1.4], [0.1, 1.3]], dtype=torch.float64)
    first = 0.2 * 1.0 / 0.8
    second = 0.2 * 0.2 / 0.2
    assert optimal_lr_estimate(x, 0.2, smooth=0.6).tolist() == pytest.approx([first, 0.6 * first + 0.4 * second])


def test_bad_arguments_are_named():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    for name, value in {"total_steps": 0, "pct_up": 0.6, "div": 0.5, "final_div": 0.0, "shape": "flat"}.items():
        with pytest.raises(InputError, match=name):
            OneCycle(optimizer, **{"total_steps": 9, name: value})
    with pytest.raises(InputError, match="max_lr must"):
        OneCycle(optimizer, 9, max_lr=-1.0)
    with pytest.raises(InputError, match="max_lr holds 2 rates"):
        OneCycle(optimizer, 9, max_lr=[1.0, 2.0])
    with pytest.raises(InputError, match=r"cycle_momentum\[1\]"):
        OneCycle(optimizer, 9, cycle_momentum=(0.9, 1.0))
    with pytest.raises(InputError, match="cycle_momentum=None"):
        OneCycle(torch.optim.Adagrad(parameters()), 9)
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert OneCycle(torch.optim.Adagrad(parameters()), 9, cycle_momentum=None).last_epoch == 0


def test_bad_data_and_iterates_are_named():
    model, data = line()
    with pytest.raises(InputError, match="no batches"):
        lr_range_test(model, nn.functional.mse_loss, [])
    with pytest.raises(InputError, match="hi"):
        lr_range_test(model, nn.functional.mse_loss, data, 1.0, 0.1)
    with pytest.raises(InputError, match="not finite"):
        lr_range_test(model, nn.functional.mse_loss, [(x * math.nan, y) for x, y in data])
    with pytest.raises(InputError, match="3 points"):
        optimal_lr_estimate([torch.zeros(2)] * 2, 0.1)
    with pytest.raises(InputError, match="lr"):
        optimal_lr_estimate([torch.zeros(2)] * 3, 0.0)
