"""Freezing by the size of gradients: when, what, and that it is for ever."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hasten
from hasten.core.errors import InputError
from hasten.optim.adaptive.adopt import ADOPT
from hasten.optim.averaging.freezing import CARD, GradientEarlyStopping


def matrices(count: int = 2) -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 3)) for _ in range(count)] + [nn.Parameter(torch.ones(4))]


def feed(params: list[nn.Parameter], *sizes: float) -> None:
    """Gradients with these l1 norms for the parameters that train, 0 for those beyond."""
    for param, size in zip(params, [*sizes, *[0.0] * len(params)]):
        param.grad = torch.full_like(param, size / param.numel()) if param.requires_grad else None


@pytest.mark.parametrize("rule", [torch.optim.Adam, torch.optim.Adagrad, torch.optim.SGD, ADOPT])
def test_the_matrix_with_the_smaller_gradient_freezes_first(rule: Any):
    params = matrices()
    optimizer = rule(params, lr=0.1)
    stopping = GradientEarlyStopping(optimizer, total_steps=10, tau=1.0, alpha=0.3)
    #                 step: 1    2    3    4    5    6    7
    for large, small in zip([9.0, 9.0, 0.1, 4.0, 2.0, 0.9, 5.0], [5.0, 0.1, 0.1, 0.9, 5.0, 5.0, 5.0]):
        feed(params, large, small)
        before = [param.detach().clone() for param in params]
        optimizer.step()
        if stopping.steps == 4:
            assert not params[1].requires_grad
            assert params[1].grad is None
            assert params[1] not in optimizer.state
            assert torch.equal(params[1], before[1]), "the step that freezes is not taken"
            assert not torch.equal(params[0], before[0])
            assert not stopping.should_stop
    assert stopping.state[params[1]] == {"frozen": 4}
    assert stopping.state[params[0]] == {"frozen": 6}
    assert stopping.should_stop
    assert params[2].requires_grad, "what is no matrix goes on"


def test_interval_and_share():
    params = matrices(4)
    optimizer = torch.optim.SGD(params, lr=0.0)
    stopping = GradientEarlyStopping(optimizer, total_steps=10, tau=1.0, alpha=0.0, interval=3, max_frozen=0.5)
    seen = []
    for _ in range(6):
        feed(params, 0.5, 0.5, 5.0 if stopping.steps < 5 else 0.5, 5.0)
        optimizer.step()
        seen.append(len(stopping.frozen))
    assert seen == [0, 0, 2, 2, 2, 3]
    assert stopping.should_stop


def test_relative_threshold():
    params = matrices(1)
    optimizer = torch.optim.SGD(params, lr=0.0)
    stopping = GradientEarlyStopping(optimizer, total_steps=10, tau=0.5, alpha=0.2, relative=True)
    for size, frozen in [(1e-3, 0), (1e-2, 0), (8e-3, 0), (5.1e-3, 0), (4.9e-3, 1)]:
        feed(params, size)
        optimizer.step()
        assert len(stopping.frozen) == frozen


@pytest.mark.parametrize(("monitor", "sizes"), [("grad_change", [3.0, 9.0, 9.5]), ("weight_change", [3.0, 0.5, 9.0])])
def test_changes_since_the_last_check(monitor: str, sizes: list[float]):
    """Steps of rate 1: the weights change by as much as the gradients measure."""
    params = matrices(1)
    optimizer = torch.optim.SGD(params, lr=1.0)
    GradientEarlyStopping(optimizer, total_steps=10, tau=1.0, alpha=0.0, monitor=monitor)
    for place, size in enumerate(sizes):
        assert params[0].requires_grad, place
        feed(params, size)
        optimizer.step()
    assert not params[0].requires_grad


def test_names_choose_the_matrices():
    model = nn.ModuleDict({name: nn.Linear(2, 2) for name in ("q_proj", "v_proj", "head")})
    plain, named = torch.optim.SGD(model.parameters()), torch.optim.SGD(model.named_parameters())
    options = {"total_steps": 5, "match": ("q_proj", "v_proj")}
    for stopping in (GradientEarlyStopping(plain, model=model, **options), GradientEarlyStopping(named, **options)):
        assert [id(param) for param in stopping.tracked] == [id(model[n].weight) for n in ("q_proj", "v_proj")]
    with pytest.raises(InputError, match="finds no matrix"):
        GradientEarlyStopping(torch.optim.SGD(model.parameters()), **options)
    with pytest.raises(InputError, match="sequence of names"):
        GradientEarlyStopping(plain, total_steps=5, match="q_proj")


def train(model: nn.Module, optimizer: Any, first: int, last: int) -> None:
    for t in range(first, last):
        optimizer.zero_grad()
        inputs = torch.sin(torch.arange(12.0).reshape(4, 3) + t)
        model(inputs).square().mean().backward()
        optimizer.step()


def test_saved_state_freezes_the_same():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    twin = copy.deepcopy(model)

    def make(network: nn.Module) -> tuple[Any, GradientEarlyStopping]:
        optimizer = torch.optim.Adam(network.parameters(), lr=0.05)
        return optimizer, GradientEarlyStopping(optimizer, total_steps=30, tau=0.95, alpha=0.2, relative=True)

    optimizer, stopping = make(model)
    train(model, optimizer, 0, 15)
    assert len(stopping.frozen) in (1, 2)
    again, other = make(twin)
    twin.load_state_dict(model.state_dict())
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    other.load_state_dict(stopping.state_dict())
    assert [param.requires_grad for param in twin.parameters()] == [param.requires_grad for param in model.parameters()]
    train(model, optimizer, 15, 25)
    train(twin, again, 15, 25)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    stopping.unfreeze()
    assert all(param.requires_grad for param in model.parameters())
    assert not stopping.frozen


def test_everything_frozen_is_a_quiet_end():
    params = matrices(1)[:1]
    optimizer = torch.optim.Adam(params)
    stopping = GradientEarlyStopping(optimizer, total_steps=4, tau=1.0, alpha=0.0)
    for _ in range(3):
        feed(params, 0.5)
        optimizer.step()
    assert stopping.should_stop
    assert torch.equal(params[0], torch.ones(2, 3))


def test_bad_arguments_are_named():
    optimizer = torch.optim.SGD(matrices())
    bad: dict[str, Any] = {"total_steps": 0, "tau": 0.0, "alpha": 1.0, "interval": 0, "monitor": "x", "max_frozen": 0.0}
    for name, value in bad.items():
        with pytest.raises(InputError, match=name):
            GradientEarlyStopping(optimizer, **{"total_steps": 9, name: value})


def test_races():
    trace = hasten.run(CARD.make(lr=1e-2, tau=0.8), hasten.problem("digits-mlp:width=8"), budget=40)
    assert trace.status == "budget", trace.message
    assert trace.final < trace.metric[0]
    answer = trace.answer
    assert any(not param.requires_grad for param in answer.parameters())
    assert isinstance(next(answer.parameters()), Tensor)
