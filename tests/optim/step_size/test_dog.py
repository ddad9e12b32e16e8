"""DoG and LDoG against the authors' code, and where their step size must not go wrong."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stream import digests, parameters, set_gradients

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.run import run
from hasten.optim.step_size.dog import CARD, LAYERWISE, DoG, LDoG

BOTH = pytest.mark.parametrize("rule", [DoG, LDoG])

# Digests after 1, 2, 10, 100 steps of src/dog/dog.py of formll/dog at commit 8d45cf5 (version 1.0.3), float64.
GOLDEN: list[tuple[type, dict[str, float], list[list[float]]]] = [
    (
        DoG,
        {},
        [
            [-0.627443752341442, -13.768997044556],
            [-0.6274438436851209, -13.768991275663648],
            [-0.6274433690155761, -13.769000930940022],
            [-0.6274428836429299, -13.768995769781192],
        ],
    ),
    (
        DoG,
        {"reps_rel": 1e-3, "weight_decay": 0.1},
        [
            [-0.6279138570260387, -13.76324755491431],
            [-0.627950375157878, -13.756652522117967],
            [-0.626840371570351, -13.753046055442919],
            [-0.6236625561378899, -13.689978009946891],
        ],
    ),
    (
        DoG,
        {"init_eta": 0.01},
        [
            [-0.6322897468050048, -13.731192529054663],
            [-0.6330572113205841, -13.68272261588879],
            [-0.629069064160714, -13.763845711845375],
            [-0.624990990143509, -13.720481941991771],
        ],
    ),
    (
        LDoG,
        {},
        [
            [-0.6274442140679489, -13.769001151245327],
            [-0.627443657134716, -13.768988507196784],
            [-0.6274435968334079, -13.769004468612938],
            [-0.6274431920405461, -13.769000679216807],
        ],
    ),
    (
        LDoG,
        {"reps_rel": 1e-3, "weight_decay": 0.1},
        [
            [-0.6284168175706368, -13.767723937959458],
            [-0.6278627732511866, -13.754689790633964],
            [-0.6269366418191414, -13.75458507606734],
            [-0.6230330235092042, -13.679039261207059],
        ],
    ),
    (
        LDoG,
        {"init_eta": 0.01},
        [
            [-0.6322897468050048, -13.731192529054663],
            [-0.6317339487799453, -13.67162099254219],
            [-0.6277395712751483, -13.759345083609775],
            [-0.6287623012812629, -13.770369909378092],
        ],
    ),
]


@pytest.mark.parametrize(("rule", "hyper", "expected"), GOLDEN)
def test_authors_trajectory(rule: type, hyper: dict[str, float], expected: list[list[float]]):
    params = parameters()
    found = digests(params, rule(params, **hyper).step)
    torch.testing.assert_close(*torch.tensor([found, expected], dtype=torch.float64), rtol=0, atol=1e-12)


def steps(params: list[Any], optimizer: Any, first: int, last: int) -> list[torch.Tensor]:
    for t in range(first, last + 1):
        set_gradients(params, t)
        optimizer.step()
    return [param.detach().clone() for param in params]


@BOTH
@settings(max_examples=10, deadline=None)
@given(scale=st.floats(1e-3, 1e3))
def test_scaling_the_variables_scales_the_trajectory(rule: type, scale: float):
    """From zero, with the first movement scaled likewise, and gradients with the inverse."""

    def trajectory(factor: float) -> torch.Tensor:
        x = torch.nn.Parameter(torch.zeros(3, dtype=torch.float64))
        optimizer = rule([x], reps_rel=1e-4 * factor, eps=1e-8 / factor**2)
        for t in range(60):
            x.grad = (
                torch.tensor([1.0, 3.0, 0.2]) * (x.detach() / factor - 1) + 0.1 * torch.sin(torch.tensor(t))
            ) / factor
            optimizer.step()
        return x.detach() / factor

    torch.testing.assert_close(trajectory(scale), trajectory(1.0), rtol=1e-7, atol=1e-10)


@BOTH
def test_zero_first_gradient_does_not_blow_up(rule: type):
    x = torch.nn.Parameter(torch.ones(4))
    optimizer = rule([x])
    x.grad = torch.zeros(4)
    optimizer.step()
    assert torch.equal(x.detach(), torch.ones(4))
    x.grad = torch.ones(4)
    optimizer.step()
    assert (x.detach() - 1).abs().max() < 1e-5


def test_a_group_must_not_grow():
    x, late = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = DoG([x])
    x.grad = late.grad = torch.ones(2)
    optimizer.step()
    before = x.detach().clone()
    optimizer.param_groups[0]["params"].append(late)
    with pytest.raises(InputError, match="grew from 1 to 2 parameters"):
        optimizer.step()
    assert torch.equal(x.detach(), before)


@BOTH
def test_a_group_added_later_starts_by_itself(rule: type):
    x, late = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    optimizer = rule([x])
    x.grad = torch.ones(2)
    for _ in range(5):
        optimizer.step()
    optimizer.add_param_group({"params": [late], "reps_rel": 1e-3})
    late.grad = torch.ones(2)
    optimizer.step()
    alone = torch.nn.Parameter(torch.ones(2))
    alone.grad = torch.ones(2)
    rule([alone], reps_rel=1e-3).step()
    torch.testing.assert_close(late.detach(), alone.detach())


def test_the_group_is_one_vector():
    """Norms are over the group, so cutting a tensor in two changes nothing; LDoG would differ."""
    whole = torch.nn.Parameter(torch.linspace(-1, 1, 6, dtype=torch.float64))
    halves = [torch.nn.Parameter(part.clone()) for part in whole.detach().split(2)]
    one, many = DoG([whole], reps_rel=1e-2), DoG(halves, reps_rel=1e-2)
    for t in range(20):
        whole.grad = torch.cos(torch.arange(6, dtype=torch.float64) * (t + 1))
        for half, grad in zip(halves, whole.grad.split(2)):
            half.grad = grad.clone()
        one.step()
        many.step()
    torch.testing.assert_close(torch.cat([half.detach() for half in halves]), whole.detach())


def test_mixed_precision_group_has_one_step_size():
    x = torch.nn.Parameter(torch.ones(3, dtype=torch.float64))
    y = torch.nn.Parameter(torch.ones(3, dtype=torch.float32))
    optimizer = DoG([x, y], reps_rel=1e-2)
    for t in range(10):
        x.grad = torch.full_like(x, 1.0 + t)
        y.grad = torch.full_like(y, 1.0 + t)
        optimizer.step()
    torch.testing.assert_close(x.detach().float(), y.detach(), rtol=1e-5, atol=1e-7)


@BOTH
def test_missing_gradients_and_round_trip(rule: type):
    first, second = parameters(), parameters()
    optimizer = rule(first, reps_rel=1e-2)
    set_gradients(first, 1)
    first[1].grad = None
    optimizer.step()
    assert torch.equal(first[1], parameters()[1])
    steps(first, optimizer, 2, 7)
    saved = copy.deepcopy(optimizer.state_dict())
    for target, source in zip(second, first):
        target.data.copy_(source)
    again = rule(second)
    again.load_state_dict(saved)
    for a, b in zip(steps(first, optimizer, 8, 20), steps(second, again, 8, 20)):
        assert torch.equal(a, b)


@BOTH
def test_maximize_is_the_mirror_image(rule: type):
    down, up = parameters(), parameters()
    a, b = rule(down, reps_rel=1e-2, weight_decay=0.1), rule(up, reps_rel=1e-2, weight_decay=0.1, maximize=True)
    for t in range(1, 8):
        set_gradients(down, t)
        set_gradients(up, t)
        for param in up:
            param.grad.neg_()
        a.step()
        b.step()
    for x, y in zip(down, up):
        torch.testing.assert_close(x, y)


@BOTH
@pytest.mark.parametrize(
    "hyper", [{"reps_rel": 0.0}, {"eps": 0.0}, {"init_eta": -1.0}, {"lr": -1.0}, {"weight_decay": -0.1}]
)
def test_bad_arguments_are_named(rule: type, hyper: dict[str, float]):
    with pytest.raises(InputError, match=next(iter(hyper))):
        rule(parameters(), **hyper)


@pytest.mark.parametrize("card", [CARD, LAYERWISE])
def test_a_race_measures_the_average(card: Any):
    digits = problem("digits-mlp")
    averaged = run(card.make(reps_rel=1e-4), digits, budget=60, every=60)
    last = run(card.make(reps_rel=1e-4, average=False), digits, budget=60, every=60)
    assert averaged.status == last.status == "budget", averaged.message + last.message
    assert averaged.final != last.final
    assert averaged.final < averaged.metric[0] - 0.1
