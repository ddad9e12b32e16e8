"""The signal-to-noise filter and its optimizers against the formulas, written out over all micro-batches."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import VRLAMB, VRSGD, CoordinateClip, Discover, GSNRFilter, VRAdam, compose

SHAPES = ((4, 3), (5,), ())


def parameters() -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def micro_gradients(t: int, count: int) -> list[list[Tensor]]:
    """`count` gradients for each tensor, around a common mean."""
    generator = torch.Generator().manual_seed(t)
    found = []
    for shape in SHAPES:
        mean = torch.randn(shape, generator=generator, dtype=torch.float64)
        found.append([mean + torch.randn(shape, generator=generator, dtype=torch.float64) for _ in range(count)])
    return found


def ratio(grads: list[Tensor], gamma: float) -> Tensor:
    stack = torch.stack(grads)
    mean = stack.mean(0)
    r = mean**2 / ((stack**2).mean(0) - mean**2)
    return (r / r.mean()).clamp(gamma, 1)


def feed(target: Any, params: list[nn.Parameter], grads: list[list[Tensor]]) -> None:
    for place in range(len(grads[0])):
        for param, own in zip(params, grads):
            param.grad = own[place].clone()
        target.accumulate()


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("count", [2, 8])
def test_filter_is_the_formula(momentum: float, count: int):
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.1)
    gsnr = GSNRFilter(optimizer, gamma=0.2, momentum=momentum)
    points = [param.detach().clone() for param in params]
    q: list[Any] = [0.0] * len(points)
    for t in range(1, 6):
        grads = micro_gradients(t, count)
        feed(gsnr, params, grads)
        optimizer.step()
        for place, own in enumerate(grads):
            q[place] = momentum * q[place] + (1 - momentum) * ratio(own, 0.2)
            points[place] = points[place] - 0.1 * torch.stack(own).mean(0) * q[place] / (1 - momentum**t)
    torch.testing.assert_close([param.detach() for param in params], points, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("trust", [False, True])
def test_adam_and_lamb_are_the_formulas(trust: bool):
    params = parameters()
    optimizer = (VRLAMB if trust else VRAdam)(params, lr=0.02, betas=(0.9, 0.99, 0.8), weight_decay=0.1, gamma=0.3)
    points = [param.detach().clone() for param in params]
    moments = [[torch.zeros_like(point) for _ in range(3)] for point in points]
    for t in range(1, 8):
        grads = micro_gradients(t, 4)
        feed(optimizer, params, grads)
        optimizer.step()
        for place, own in enumerate(grads):
            m, v, q = moments[place]
            gb = torch.stack(own).mean(0)
            q = 0.8 * q + 0.2 * ratio(own, 0.3)
            m = 0.9 * m + 0.1 * gb * q / (1 - 0.8**t)
            v = 0.99 * v + 0.01 * gb**2
            moments[place] = [m, v, q]
            step = m / (1 - 0.9**t) / ((v / (1 - 0.99**t)).sqrt() + 1e-8) + 0.1 * points[place]
            if trust:
                step = step * points[place].norm() / step.norm()
            points[place] = points[place] - 0.02 * step
    torch.testing.assert_close([param.detach() for param in params], points, rtol=1e-9, atol=1e-11)


def test_sgd_is_the_filter_before_momentum():
    ours, theirs = parameters(), parameters()
    optimizer, sgd = VRSGD(ours, lr=0.1, gamma=0.2), torch.optim.SGD(theirs, lr=0.1, momentum=0.9)
    for t in range(1, 5):
        grads = micro_gradients(t, 3)
        feed(optimizer, ours, grads)
        optimizer.step()
        for param, own in zip(theirs, grads):
            param.grad = torch.stack(own).mean(0) * ratio(own, 0.2)
        sgd.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("make", [VRSGD, VRAdam, VRLAMB])
def test_optimizers_continue_from_a_checkpoint(make: Any):
    params = parameters()
    optimizer = make(params)
    for t in range(1, 4):
        feed(optimizer, params, micro_gradients(t, 3))
        optimizer.step()
    others = [nn.Parameter(param.detach().clone()) for param in params]
    resumed = make(others)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    thirds, copied = copy.deepcopy((params, optimizer))
    for tensors, going in ((params, optimizer), (others, resumed), (thirds, copied)):
        for t in range(4, 7):
            feed(going, tensors, micro_gradients(t, 3))
            going.step()
    assert all(map(torch.equal, params, others))
    assert all(map(torch.equal, params, thirds))


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_micro_batches_are_refused(count: int):
    for make in (VRSGD, VRAdam):
        params = parameters()
        before = [param.detach().clone() for param in params]
        optimizer = make(params)
        feed(optimizer, params, micro_gradients(1, count) if count else [[]] * 3)
        with pytest.raises(InputError, match=f"at least 2 micro-batches per step .* got {count}"):
            optimizer.step()
        assert all(map(torch.equal, params, before))


def test_noiseless_and_missing_gradients():
    params = [nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(2))]
    optimizer = torch.optim.SGD(params, lr=1.0)
    gsnr = GSNRFilter(optimizer)
    for sign in (1.0, -1.0):
        params[0].grad = torch.tensor([1e6, 0.0, 1.0 + sign])
        gsnr.accumulate()
    assert params[0].grad is None
    optimizer.step()
    assert params[0].isfinite().all()
    assert params[0][0] == -1e6, "what all micro-batches agree on passes"
    assert params[0][1] == 0
    assert params[1].grad is None


def test_a_missing_gradient_counts_as_zero():
    params = [nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))]
    optimizer = torch.optim.SGD(params, lr=1.0)
    gsnr = GSNRFilter(optimizer)
    for value in (1.0, None):
        params[0].grad = torch.ones(1)
        params[1].grad = None if value is None else torch.ones(1)
        gsnr.accumulate()
    optimizer.step()
    assert float(params[1].detach()) == pytest.approx(-0.5)


def test_composes_with_another_filter():
    x = nn.Parameter(torch.zeros(4))
    gsnr = GSNRFilter(gamma=1.0)
    optimizer = compose(torch.optim.SGD([x], lr=1.0), gsnr, CoordinateClip(threshold=0.5))
    for shift in (0.0, 0.1):
        x.grad = torch.tensor([2.0, -2.0, 0.1, 0.2]) + shift
        gsnr.accumulate()
    optimizer.step()
    torch.testing.assert_close(x.detach(), -torch.tensor([0.5, -0.5, 0.15, 0.25]))


def test_two_that_make_the_gradient_anew_are_refused():
    with pytest.raises(InputError, match="do not go together"):
        compose(torch.optim.SGD(parameters(), lr=0.1), Discover(num_clusters=2), GSNRFilter())


def test_closure_runs_the_micro_batches():
    params = parameters()
    optimizer = VRAdam(params)

    def closure() -> float:
        feed(optimizer, params, micro_gradients(1, 2))
        return 7.0

    assert optimizer.step(closure) == 7.0


@pytest.mark.parametrize("hyper", [{"gamma": 0.0}, {"gamma": 1.5}, {"momentum": 1.0}, {"gamma": math.nan}])
def test_bad_arguments_are_named(hyper: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(hyper))):
        GSNRFilter(None, **hyper)
