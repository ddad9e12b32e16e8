"""OASIS against plain references, and steps whose bounds cannot be formed."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.run import run
from hasten.optim import NonFiniteGradientError
from hasten.optim.step_size.oasis import CARD, OASIS, adapt

CURVATURE = torch.logspace(-1, 2, 6, dtype=torch.float64)


def diagonal_quadratic(x: Tensor) -> Tensor:
    return 0.5 * (CURVATURE * x**2).sum()


def start() -> nn.Parameter:
    return nn.Parameter(torch.linspace(-1, 2, 6, dtype=torch.float64))


def coupled(x: Tensor) -> Tensor:
    return diagonal_quadratic(x) + torch.log(torch.cosh(x.sum())) + 0.1 * (x**4).sum()


def test_a_diagonal_hessian_is_found_exactly():
    """Signs times the product with a diagonal matrix are its diagonal, whatever the signs."""
    x = start()
    optimizer = OASIS([x])
    for _ in range(60):
        optimizer.step(lambda: diagonal_quadratic(x))
    torch.testing.assert_close(optimizer.state[x]["diagonal"], CURVATURE)
    assert float(diagonal_quadratic(x.detach())) < 1e-12


def test_with_the_scale_held_fixed_it_is_adaptive_gradient_descent():
    """The rule of Malitsky and Mishchenko, from its formulas."""
    x, scale = start(), 1e6
    optimizer = OASIS([x], eta0=1e-3 * scale, alpha=scale, warm_samples=1)
    point = x.detach().clone().requires_grad_()
    (g,) = torch.autograd.grad(coupled(point), point)
    rate, theta, now = 1e-3, math.inf, point.detach()
    for _ in range(60):
        before, g_before = now, g
        now = now - rate * g
        optimizer.step(lambda: coupled(x))
        torch.testing.assert_close(x.detach(), now, rtol=1e-9, atol=1e-12)
        point = now.clone().requires_grad_()
        (g,) = torch.autograd.grad(coupled(point), point)
        found = min(math.sqrt(1 + theta) * rate, float(0.5 * (now - before).norm() / (g - g_before).norm()))
        theta, rate = found / rate, found


@pytest.mark.parametrize("stochastic", [True, False])
def test_the_whole_rule_from_its_formulas(stochastic: bool):
    """With the exact diagonal of a non-quadratic, separable function, which any signs give."""

    def separable(x: Tensor) -> Tensor:
        return diagonal_quadratic(x) + 0.1 * (x**4).sum()

    def gradient(x: Tensor) -> Tensor:
        return CURVATURE * x + 0.4 * x**3

    x = start()
    optimizer = OASIS([x], b2=0.9, eta0=1e-2, stochastic=stochastic)
    now, eta, theta = x.detach().clone(), 1e-2, math.inf
    before, diagonal = now, torch.zeros(6, dtype=torch.float64)
    for k in range(40):
        fresh = CURVATURE + 1.2 * now**2
        diagonal = fresh if k == 0 else 0.9 * diagonal + 0.1 * fresh
        if k:
            moved, change = now - before, gradient(now) - gradient(before)
            bound = 0.5 * float((diagonal * moved**2).sum().sqrt() / (change**2 / diagonal).sum().sqrt())
            found = min(math.sqrt(1 + theta) * eta, bound)
            theta, eta = found / eta, found
        before, now = now, now - eta * gradient(now) / diagonal
        optimizer.step(lambda: separable(x))
        torch.testing.assert_close(x.detach(), now, rtol=1e-9, atol=1e-12)


def test_negative_curvature_counts_by_its_absolute_value():
    x = nn.Parameter(torch.tensor([0.5], dtype=torch.float64))
    optimizer = OASIS([x], eta0=0.1)
    optimizer.step(lambda: (-2.0 * x**2).sum())
    assert float(x.detach()) == pytest.approx(0.5 + 0.1 * 2.0 / 4.0)


def test_both_gradients_of_the_difference_are_of_the_present_batch():
    """On batches that differ by a linear term the difference does not see the term; kept gradients would."""

    def steps(size: float) -> float:
        x = start()
        optimizer = OASIS([x])
        for t in range(8):
            optimizer.step(lambda t=t: diagonal_quadratic(x) + size * (-1) ** t * x.sum())
        return optimizer.param_groups[0]["eta"]

    assert steps(1e-9) == pytest.approx(steps(1e-3), rel=1e-3)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((0.1, 3.0, 1.0, 10.0), (0.05, 0.5)),
        ((0.1, 3.0, 1.0, 1.0), (0.2, 2.0)),
        ((0.1, 3.0, 0.0, 0.0), (0.2, 2.0)),
        ((0.1, math.inf, 0.0, 0.0), (0.1, 1.0)),
        ((0.1, math.inf, 1.0, 1.0), (0.5, 5.0)),
        ((0.1, 3.0, 0.0, 1.0), (0.2, 2.0)),
    ],
)
def test_bounds_that_cannot_be_formed_are_left_out(given: tuple[float, ...], expected: tuple[float, float]):
    assert adapt(*given) == pytest.approx(expected)


def test_momentum_and_a_fixed_rate():
    x, rate, average = start(), 0.1, torch.zeros(6, dtype=torch.float64)
    optimizer = OASIS([x], fixed_lr=rate, momentum=0.9, weight_decay=0.01)
    now = x.detach().clone()
    for _ in range(10):
        average = 0.9 * average + 0.1 * CURVATURE * now
        now = now * (1 - 0.01 * rate) - rate * average / CURVATURE
        optimizer.step(lambda: diagonal_quadratic(x))
    torch.testing.assert_close(x.detach(), now)
    assert set(optimizer.state[x]) == {"step", "diagonal", "exp_avg"}


@pytest.mark.parametrize("stochastic", [True, False])
def test_continues_with_the_same_signs(stochastic: bool):
    first = start()
    optimizer = OASIS([first], stochastic=stochastic)
    for _ in range(5):
        optimizer.step(lambda: coupled(first))
    second = nn.Parameter(first.detach().clone())
    again = OASIS([second], stochastic=stochastic)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(10):
        optimizer.step(lambda: coupled(first))
        again.step(lambda: coupled(second))
    assert torch.equal(first, second)


def test_seeds_draw_different_signs():
    ends = []
    for seed in (0, 1):
        x = start()
        optimizer = OASIS([x], seed=seed, warm_samples=1)
        for _ in range(3):
            optimizer.step(lambda x=x: coupled(x))
        ends.append(x.detach())
    assert not torch.equal(*ends)


def test_a_group_that_joins_late():
    x, late = start(), start()
    optimizer = OASIS([x])
    for _ in range(5):
        optimizer.step(lambda: diagonal_quadratic(x))
    optimizer.add_param_group({"params": [late]})
    for _ in range(60):
        optimizer.step(lambda: diagonal_quadratic(x) + diagonal_quadratic(late))
    assert float(diagonal_quadratic(late.detach())) < 1e-6


def test_an_error_in_the_second_evaluation_moves_nothing():
    x = start()
    optimizer = OASIS([x])
    optimizer.step(lambda: diagonal_quadratic(x))
    here, calls = x.detach().clone(), iter([True, False])

    def closure() -> Tensor:
        if not next(calls):
            raise KeyError("batch lost")
        return diagonal_quadratic(x)

    with pytest.raises(KeyError):
        optimizer.step(closure)
    assert torch.equal(x.detach(), here)


def test_a_loss_that_is_not_finite():
    x = start()
    with pytest.raises(NonFiniteGradientError, match="loss is nan"):
        OASIS([x]).step(lambda: diagonal_quadratic(x) + math.nan)


@pytest.mark.parametrize(
    "hyper",
    [
        {"eta0": 0.0},
        {"b2": 1.0},
        {"alpha": 0.0},
        {"warm_samples": 0},
        {"momentum": 1.0},
        {"fixed_lr": 0.0},
        {"seed": -1},
    ],
)
def test_bad_arguments_are_named(hyper: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(hyper))):
        OASIS([start()], **hyper)


def test_trains_on_batches():
    trace = run(CARD.make(warm_samples=10), problem("digits-mlp"), budget=400, every=40)
    assert trace.status in ("budget", "reached"), trace.message
    assert min(trace.metric) < 0.7 * trace.metric[0]
