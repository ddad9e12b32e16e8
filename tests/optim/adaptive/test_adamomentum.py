"""AdaMomentum against its formulas.

The plain form was compared with the third-party code in hfassold/omni_optimizer (`my_adamomentum.py`, commit 51aa377):
100 steps with mixed shapes, a zero and a missing gradient and a step-wise learning rate agree to 3e-16.
"""

from __future__ import annotations

import math
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import AdaBelief, AdaMomentum


def plain(lr: float = 1e-3, eps: float = 1e-8, decay: float = 0.0, coupled: bool = False) -> ref.Rule:
    b1, b2 = 0.9, 0.999

    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        g = g + decay * p if coupled else g
        p = p if coupled else p * (1 - lr * decay)
        m = s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        v = s["v"] = b2 * s.get("v", 0.0) + (1 - b2) * m**2 + eps
        return p - lr * (m / (1 - b1**t)) / (v / (1 - b2**t)).sqrt()

    return rule


CASES: list[tuple[dict[str, Any], ref.Rule]] = [
    ({}, plain()),
    ({"lr": 0.01, "eps": 1e-4}, plain(lr=0.01, eps=1e-4)),
    ({"weight_decay": 0.1}, plain(decay=0.1)),
    ({"weight_decay": 0.1, "weight_decouple": False}, plain(decay=0.1, coupled=True)),
]


def assert_follows(backend: str, options: dict[str, Any], rule: ref.Rule, last: int) -> None:
    params = ref.start()
    ours = ref.drive(AdaMomentum(params, backend=backend, **options), params, last=last)
    for left, right in zip(ours, ref.follow(rule, last), strict=True):
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize(("options", "rule"), CASES, ids=[str(options) for options, _ in CASES])
@pytest.mark.parametrize("last", [1, 2, 10, 100])
def test_follows_the_paper(options: dict[str, Any], rule: ref.Rule, last: int) -> None:
    assert_follows("eager", options, rule, last)


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_follow_the_paper() -> None:
    assert_follows("compile", *CASES[2], last=12)


def test_noise_shortens_steps_less_than_the_square_of_the_gradient_would() -> None:
    """With `g = 1 + noise` Adam's steps have length lr / sqrt(1 + variance), AdaMomentum's nearly lr."""
    generator = torch.Generator().manual_seed(0)
    moved = {}
    for make in (AdaMomentum, torch.optim.Adam):
        x = nn.Parameter(torch.zeros(2000))
        optimizer = make([x], lr=1e-3)
        generator.manual_seed(0)
        for t in range(1000):
            if t == 500:
                start = x.detach().clone()
            x.grad = 1 + 3 * torch.randn(2000, generator=generator)
            optimizer.step()
        moved[make] = float((start - x.detach()).mean()) / 0.5
    assert moved[torch.optim.Adam] == pytest.approx(1 / math.sqrt(10), rel=0.02)
    assert moved[AdaMomentum] == pytest.approx(1 / math.sqrt(1 + 9 / 19), rel=0.02)


def test_is_adabelief_with_another_residual() -> None:
    """Where the gradient's deviation from its average is the average itself (b1 = 1/2, first step) the two agree."""
    ours, theirs = ref.start(), ref.start()
    options: dict[str, Any] = {"betas": (0.5, 0.99), "eps": 1e-30, "lr": 0.1}
    ref.drive(AdaMomentum(ours, **options), ours, last=1)
    ref.drive(AdaBelief(theirs, rectify=False, **options), theirs, last=1)
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-12)


def test_zero_gradients_stay_finite() -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = AdaMomentum([x])
    for grad in (0.0, 0.0, 1e-25, 1e10):
        x.grad = torch.full((3,), grad)
        optimizer.step()
    assert torch.isfinite(x).all()
    with pytest.raises(InputError, match="eps"):
        AdaMomentum([x], eps=0.0)
