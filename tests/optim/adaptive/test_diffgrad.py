"""diffGrad against its formulas, and its friction on other optimizers.

The plain form was compared with `diffGrad_v2.py` of shivram1987/diffGrad (commit 93fb7fc): 100 steps with mixed shapes,
a zero and a missing gradient and a step-wise learning rate agree to 3e-16, with and without weight decay.
"""

from __future__ import annotations

import math
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import ADOPT, DiffGrad, DiffGradFriction, compose


def plain(lr: float = 1e-3, eps: float = 1e-8, decay: float = 0.0) -> ref.Rule:
    b1, b2 = 0.9, 0.999

    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        g = g + decay * p
        xi = 1 / (1 + torch.exp(-(s.get("g", 0.0) - g).abs()))
        s["g"] = g
        m = s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        v = s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
        return p - lr * math.sqrt(1 - b2**t) / (1 - b1**t) * xi * m / (v.sqrt() + eps)

    return rule


CASES: list[tuple[dict[str, Any], ref.Rule]] = [
    ({}, plain()),
    ({"lr": 0.01, "eps": 0.1}, plain(lr=0.01, eps=0.1)),
    ({"weight_decay": 0.1}, plain(decay=0.1)),
]


def assert_follows(backend: str, options: dict[str, Any], rule: ref.Rule, last: int) -> None:
    params = ref.start()
    ours = ref.drive(DiffGrad(params, backend=backend, **options), params, last=last)
    for left, right in zip(ours, ref.follow(rule, last), strict=True):
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("options", "rule"), CASES, ids=[str(options) for options, _ in CASES])
@pytest.mark.parametrize("last", [1, 2, 10, 100])
def test_follows_the_paper(options: dict[str, Any], rule: ref.Rule, last: int) -> None:
    assert_follows("eager", options, rule, last)


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_follow_the_paper() -> None:
    assert_follows("compile", *CASES[2], last=12)


@pytest.mark.parametrize(("size", "friction"), [(1e-6, 0.5), (1.0, 1 / (1 + math.exp(-2.0))), (50.0, 1.0)])
def test_friction_depends_on_the_change_of_the_gradient(size: float, friction: float) -> None:
    """With gradients that alternate between `size` and `-size` the change is twice the size."""
    x, y = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    ours, adam = DiffGrad([x], eps=0.0), torch.optim.Adam([y], eps=0.0)
    for t in range(4):
        before = x.detach() - 0.0, y.detach() - 0.0
        x.grad = torch.full_like(x, size * (-1) ** t)
        y.grad = x.grad.clone()
        ours.step()
        adam.step()
    ratio = (x.detach() - before[0]) / (y.detach() - before[1])
    assert ratio.tolist() == pytest.approx([friction] * 2, rel=1e-5)


def test_the_wrapper_on_adam_is_the_rule() -> None:
    params, others = ref.start(), ref.start()
    wrapped = compose(torch.optim.Adam(others, eps=1e-30), DiffGradFriction())
    ours = ref.drive(DiffGrad(params, eps=1e-30), params, last=40)
    for left, right in zip(ours, ref.drive(wrapped, others, last=40), strict=True):
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-12)


def test_the_wrapper_halves_steps_under_a_constant_gradient() -> None:
    x = nn.Parameter(torch.zeros(3))
    optimizer = torch.optim.SGD([x], lr=1.0)
    DiffGradFriction(optimizer)
    for t in range(3):
        x.grad = torch.full((3,), 2.0)
        before = x.detach().clone()
        optimizer.step()
        friction = 1 / (1 + math.exp(-2.0)) if t == 0 else 0.5
        assert (before - x.detach()).tolist() == pytest.approx([2 * friction] * 3, rel=1e-6)


def test_steps_left_out_leave_no_trace() -> None:
    x = nn.Parameter(torch.ones(2))
    optimizer = ADOPT([x], lr=0.1, on_nonfinite="skip")
    friction = DiffGradFriction(optimizer)
    for grad in (math.nan, 1.0, math.inf, 1.0):
        x.grad = torch.full((2,), grad)
        optimizer.step()
    assert torch.isfinite(x).all()
    assert friction.steps == 2
    assert friction.state[x]["friction"].tolist() == [0.5, 0.5]


@pytest.mark.parametrize(("make", "why"), [(DiffGrad, "has this friction"), (torch.optim.LBFGS, "curvature")])
def test_optimizers_that_make_no_sense_are_refused(make: Any, why: str) -> None:
    with pytest.raises(InputError, match=why):
        DiffGradFriction(make([nn.Parameter(torch.zeros(2))]))
