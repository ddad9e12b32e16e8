"""SAM against the update by hand, and with other optimizers."""

from __future__ import annotations

import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import ADOPT, SAM, GrokfastEMA, MeZO
from hasten.optim.recipes.sam import worst_direction


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.linspace(-1, 2, 6).double().reshape(2, 3)), nn.Parameter(torch.tensor(0.7).double())]


def value(params: Any) -> Tensor:
    return (params[0] ** 4).sum() / 4 + (params[0].sum() * params[1]) + params[1] ** 2


def closure_of(optimizer: Any, params: Any) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = value(params)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("adaptive", [False, True])
def test_steps_on_the_gradient_at_the_worst_point(adaptive: bool):
    """The published two steps by hand: climb by rho g / (|g| + 1e-12), come back, step on the gradient from there."""
    params, twin = parameters(), [param.detach().clone() for param in parameters()]
    optimizer = SAM(torch.optim.SGD(params, lr=0.01), rho=0.1, adaptive=adaptive)
    for _ in range(20):
        loss = optimizer.step(closure_of(optimizer, params))
        leaves = [p.clone().requires_grad_() for p in twin]
        start = value(leaves)
        assert float(loss.detach()) == pytest.approx(float(start.detach()), abs=1e-12)
        grads = torch.autograd.grad(start, leaves)
        scaled = [p.abs() * g if adaptive else g for p, g in zip(twin, grads)]
        norm = torch.cat([s.flatten() for s in scaled]).norm()
        climb = [0.1 * g * (p**2 if adaptive else 1) / (norm + 1e-12) for p, g in zip(twin, grads)]
        leaves = [(p + e).requires_grad_() for p, e in zip(twin, climb)]
        twin = [p - 0.01 * g for p, g in zip(twin, torch.autograd.grad(value(leaves), leaves))]
    for ours, theirs in zip(params, twin):
        torch.testing.assert_close(ours.detach(), theirs, rtol=0, atol=1e-12)


def test_radius_zero_is_the_base():
    params, twin = parameters(), parameters()
    optimizer, plain = SAM(ADOPT(params, lr=0.01), rho=0.0), ADOPT(twin, lr=0.01)
    for _ in range(5):
        optimizer.step(closure_of(optimizer, params))
        plain.step(closure_of(plain, twin))
    assert all(map(torch.equal, params, twin))


def test_the_climb_has_length_rho_and_comes_back_exactly():
    params = parameters()
    optimizer = SAM(torch.optim.SGD(params, lr=0.0), rho=0.3)
    before, seen = [param.detach().clone() for param in params], []

    def closure() -> Tensor:
        seen.append(torch.cat([(p.detach() - old).flatten() for p, old in zip(params, before)]).norm())
        return closure_of(optimizer, params)()

    optimizer.step(closure)
    assert [float(length) for length in seen] == pytest.approx([0.0, 0.3])
    assert all(map(torch.equal, params, before))


def test_a_zero_gradient_stays():
    x = [torch.ones(3)]
    assert not worst_direction(x, [torch.zeros(3)], 0.1)[0].any()
    assert worst_direction([], [], 0.1) == []


def test_an_error_in_the_second_evaluation_puts_the_parameters_back():
    params, calls = parameters(), []
    optimizer = SAM(torch.optim.SGD(params, lr=0.1), rho=0.3)

    def closure() -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            raise RuntimeError("stop")
        return closure_of(optimizer, params)()

    with pytest.raises(RuntimeError, match="stop"):
        optimizer.step(closure)
    assert all(map(torch.equal, params, parameters()))


def test_works_with_schedules_hooks_and_files():
    params = parameters()
    base = torch.optim.AdamW(params, lr=0.01)
    optimizer, hook = SAM(base), GrokfastEMA(base)
    torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    optimizer.step(closure_of(optimizer, params))
    assert hook.steps == 1
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = SAM(torch.optim.AdamW([nn.Parameter(param.detach().clone()) for param in params], lr=0.1))
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.param_groups[0]["lr"] == base.param_groups[0]["lr"]


def test_bad_calls_are_named():
    params = parameters()
    with pytest.raises(InputError, match="rho"):
        SAM(torch.optim.SGD(params, lr=0.1), rho=-1.0)
    with pytest.raises(InputError, match="needs a closure"):
        SAM(torch.optim.SGD(params, lr=0.1)).step()
    with pytest.raises(InputError, match="evaluates its own"):
        SAM(MeZO(params))
