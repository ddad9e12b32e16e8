"""AdaBound against its formulas, its limits, and what a schedule and a checkpoint do to its bounds.

The plain form was compared with `adabound/adabound.py` of Luolc/AdaBound (commit 324c8b9): 100 steps with mixed shapes,
a zero and a missing gradient and a step-wise learning rate agree to 1e-15, with and without AMSBound.
"""

from __future__ import annotations

import copy
import math
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import AdaBound


def plain(
    lr: float = 1e-3,
    final: float = 0.1,
    gamma: float = 1e-3,
    eps: float = 1e-8,
    coupled: float = 0.0,
    decoupled: float = 0.0,
    largest: bool = False,
) -> ref.Rule:
    b1, b2 = 0.9, 0.999

    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        g, p = g + coupled * p, p * (1 - lr * decoupled)
        m = s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        v = s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * g**2
        if largest:
            v = s["w"] = torch.maximum(v, s.get("w", torch.zeros_like(v)))
        rate = lr * math.sqrt(1 - b2**t) / (1 - b1**t) / (v.sqrt() + eps)
        low, high = final * (1 - 1 / (gamma * t + 1)), final * (1 + 1 / (gamma * t))
        return p - torch.minimum(torch.maximum(rate, torch.full_like(p, low)), torch.full_like(p, high)) * m

    return rule


CASES: dict[str, tuple[dict[str, Any], ref.Rule]] = {
    "default": ({}, plain()),
    "narrow": ({"gamma": 0.5, "final_lr": 0.01, "lr": 0.01}, plain(gamma=0.5, final=0.01, lr=0.01)),
    "ams-coupled": ({"amsbound": True, "weight_decay": 0.1}, plain(largest=True, coupled=0.1)),
    "decoupled": ({"weight_decay": 0.1, "decouple": True, "eps": 0.1}, plain(decoupled=0.1, eps=0.1)),
}


def assert_close(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-12) -> None:
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=0.0, atol=atol)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("last", [1, 2, 10, 100])
def test_follows_the_paper(name: str, last: int) -> None:
    options, rule = CASES[name]
    params = ref.start()
    assert_close(ref.drive(AdaBound(params, backend="eager", **options), params, last=last), ref.follow(rule, last))


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_follow_the_paper() -> None:
    options, rule = CASES["narrow"]
    params = ref.start()
    assert_close(ref.drive(AdaBound(params, backend="compile", **options), params, last=12), ref.follow(rule, 12))


def unchecked(params: list[nn.Parameter], gamma: float, **options: Any) -> AdaBound:
    """The limits lie past the values that the constructor takes."""
    optimizer = AdaBound(params, **options)
    optimizer.param_groups[0]["gamma"] = gamma
    return optimizer


def test_bounds_that_never_close_make_it_adam() -> None:
    params, others = ref.start(), ref.start()
    ours = ref.drive(unchecked(params, 1e-12, eps=1e-30), params)
    assert_close(ours, ref.drive(torch.optim.Adam(others, eps=1e-30), others))


def test_bounds_that_close_at_once_make_it_sgd() -> None:
    params, others = ref.start(), ref.start()
    ours = ref.drive(unchecked(params, 1e12, final_lr=0.1), params)
    sgd = torch.optim.SGD(others, lr=0.1 * (1 - 0.9), momentum=0.9)
    assert_close(ours, ref.drive(sgd, others), atol=1e-9)


def last_step(optimizer: AdaBound, x: nn.Parameter) -> float:
    before = x.detach().clone()
    x.grad = torch.ones_like(x)
    optimizer.step()
    return float((before - x.detach())[0])


def test_a_schedule_moves_the_bounds() -> None:
    """With bounds that close at once the step is final_lr, lowered as the learning rate is."""
    x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = unchecked([x], 1e12, lr=1e-3, final_lr=0.1, betas=(0.0, 0.999))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.1)
    steps = []
    for _ in range(4):
        steps.append(last_step(optimizer, x))
        scheduler.step()
    assert steps == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_the_rate_at_construction_survives_a_checkpoint() -> None:
    """A state saved under a lowered rate is loaded by an optimizer made with another one."""
    x, y = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    first = unchecked([x], 1e12, lr=1e-3, betas=(0.0, 0.999))
    first.param_groups[0]["lr"] = 1e-4
    assert last_step(first, x) == pytest.approx(0.01)
    second = AdaBound([y], lr=0.5)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert second.param_groups[0]["base_lr"] == 1e-3
    assert last_step(second, y) == pytest.approx(0.01)


def test_every_group_has_a_base_rate_of_its_own() -> None:
    x, y, z = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = AdaBound([{"params": [x], "lr": 0.0}, {"params": [y]}], lr=torch.tensor(0.25))
    optimizer.add_param_group({"params": [z], "lr": 0.5})
    assert [group["base_lr"] for group in optimizer.param_groups] == [0.0, 0.25, 0.5]
    assert last_step(optimizer, x) == 0.0
    optimizer.param_groups[0].update(lr=0.5, gamma=1e12)
    for _ in range(50):
        step = last_step(optimizer, x)
    assert step == pytest.approx(0.1, rel=0.01)


def test_large_gradients_are_followed_at_the_lower_bound() -> None:
    x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = AdaBound([x], lr=1e-3, gamma=0.5, betas=(0.0, 0.999))
    x.grad = torch.full_like(x, 1e6)
    optimizer.step()
    assert x.item() == pytest.approx(-1e6 * 0.1 * (1 - 1 / 1.5))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"final_lr": 0.0}, "final_lr must be"),
        ({"final_lr": -1.0}, "final_lr must be"),
        ({"gamma": 0.0}, "gamma must be"),
        ({"gamma": 1.0}, "gamma must be"),
    ],
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        AdaBound(ref.start(), **options)
