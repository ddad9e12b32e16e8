"""ALR-MAG and ALR-HB against published code and plain references, and bounds that do not hold."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recorded_stream import digests, parameters, set_gradients
from torch import Tensor, nn

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.run import run
from hasten.optim import NonFiniteGradientError
from hasten.optim.step_size.alr import ALRHB, ALRMAG, HB_CARD, MAG_CARD

BOTH = pytest.mark.parametrize("rule", [ALRMAG, ALRHB])


def fed(optimizer: Any) -> Callable[[], object]:
    """A step with the loss 1.5 + sin(t)."""
    losses = (torch.tensor(1.5 + math.sin(t), dtype=torch.float64) for t in range(1, 1000))
    return lambda: optimizer.step(loss=next(losses))


# Digests after 1, 2, 10, 100 steps of stepback/optim/alr_smag.py of fabian-sp/step-back at commit 94f055b, float64.
GOLDEN: list[tuple[dict[str, float], list[list[float]]]] = [
    (
        {"lr_max": 0.1},
        [
            [-0.6759088885302701, -13.3909113892583],
            [-0.7285911201352648, -12.39998363018565],
            [-0.6319684835607797, -12.482325485773874],
            [-0.492444165529197, -11.137470411782832],
        ],
    ),
    (
        {"momentum": 0.5, "f_star": 0.2, "c": 2.0, "weight_decay": 0.1},
        [
            [-0.6847465251153949, -13.068479290754967],
            [-0.7045629341835209, -12.363591047249262],
            [-0.7072336205594251, -13.090529377294684],
            [-0.4441991435824094, -9.534135391773749],
        ],
    ),
]


@pytest.mark.parametrize(("hyper", "expected"), GOLDEN)
def test_published_trajectory(hyper: dict[str, float], expected: list[list[float]]):
    params = parameters()
    found = digests(params, fed(ALRMAG(params, **hyper)))
    torch.testing.assert_close(*torch.tensor([found, expected], dtype=torch.float64), rtol=0, atol=1e-11)


@pytest.mark.parametrize("factor", [1, 2])
def test_heavy_ball_from_the_formulas(factor: int):
    params = parameters()
    x = torch.cat([param.detach().flatten() for param in params])
    before = x.clone()
    optimizer = ALRHB(params, momentum=0.8, f_star=0.1, lr_max=0.3, factor=factor)
    for t in range(1, 60):
        set_gradients(params, t)
        g = torch.cat([param.grad.flatten() for param in params])
        loss = 0.5 + 0.4 * math.cos(t)
        eta = max(0.0, factor * (loss - 0.1) + 0.8 * float(g @ (x - before))) / float(g @ g)
        before, x = x, x - min(eta, 0.3) * g + 0.8 * (x - before)
        optimizer.step(loss=loss)
    torch.testing.assert_close(torch.cat([param.detach().flatten() for param in params]), x, rtol=0, atol=1e-12)


def quadratic(rule: Callable[[Any], Any], steps: int) -> Tensor:
    x = nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    curvature = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
    optimizer = rule([x])
    for _ in range(steps):
        x.grad = curvature * x.detach()
        optimizer.step(loss=0.5 * float((curvature * x.detach() ** 2).sum()))
    return x.detach()


@BOTH
def test_without_momentum_it_is_polyak_gradient_descent(rule: type):
    x = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    curvature = torch.tensor([1.0, 5.0, 20.0], dtype=torch.float64)
    for _ in range(15):
        g = curvature * x
        x = x - 0.5 * (curvature * x**2).sum() / (g @ g) * g
    torch.testing.assert_close(quadratic(lambda params: rule(params, momentum=0.0), 15), x, rtol=1e-10, atol=0)


@BOTH
def test_one_step_size_for_all_groups(rule: type):
    joint, split = parameters(), parameters()
    a, b = rule(joint), rule([{"params": split[:1]}, {"params": split[1:]}])
    for t in range(1, 10):
        set_gradients(joint, t)
        set_gradients(split, t)
        a.step(loss=1.0)
        b.step(loss=1.0)
    for x, y in zip(joint, split):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


@BOTH
def test_a_bound_that_does_not_hold_stops_and_warns(rule: type):
    x = nn.Parameter(torch.ones(3))
    optimizer = rule([x], f_star=5.0)
    x.grad = torch.ones(3)
    with pytest.warns(RuntimeWarning, match="beyond f_star=5"):
        optimizer.step(loss=1.0)
    assert torch.equal(x.detach(), torch.ones(3))


@BOTH
def test_a_zero_gradient_stands_still(rule: type):
    x = nn.Parameter(torch.ones(3))
    optimizer = rule([x])
    x.grad = torch.zeros(3)
    optimizer.step(loss=1.0)
    assert torch.equal(x.detach(), torch.ones(3))


@BOTH
def test_a_loss_that_is_not_finite(rule: type):
    x = nn.Parameter(torch.ones(3))
    x.grad = torch.ones(3)
    with pytest.raises(NonFiniteGradientError, match="loss is nan"):
        rule([x]).step(loss=math.nan)
    lenient = rule([x], on_nonfinite="skip")
    lenient.step(loss=math.inf)
    assert (lenient.skipped, x.tolist()) == (1, [1.0, 1.0, 1.0])


@BOTH
def test_the_loss_must_be_given_once(rule: type):
    x = nn.Parameter(torch.ones(3))
    optimizer = rule([x])
    x.grad = torch.ones(3)
    for given in ({}, {"closure": lambda: 1.0, "loss": 1.0}):
        with pytest.raises(InputError, match="either closure or loss"):
            optimizer.step(**given)
    with pytest.raises(InputError, match="returned None"):
        optimizer.step(lambda: None)


@BOTH
@pytest.mark.parametrize("hyper", [{"momentum": 1.0}, {"c": 0.0}, {"lr_max": -1.0}, {"f_star": math.inf}])
def test_bad_arguments_are_named(rule: type, hyper: dict[str, float]):
    with pytest.raises(InputError, match=next(iter(hyper))):
        rule(parameters(), **hyper)
    with pytest.raises(InputError, match="factor"):
        ALRHB(parameters(), factor=3)


@pytest.mark.parametrize("card", [MAG_CARD, HB_CARD])
def test_trains_on_batches(card: Any):
    trace = run(card.make(lr_max=0.1), problem("digits-mlp"), budget=120, every=60)
    assert trace.status in ("budget", "reached"), trace.message
    assert trace.final < 0.5 * trace.metric[0]
