"""CoRe against the rule written plainly, and the two rules it contains."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import CoRe


def plain(
    lr: float = 1e-3, low: float = 1e-6, high: float = 1e-2, etas: tuple[float, float] = (0.7375, 1.2),
    betas: tuple[float, ...] = (0.7375, 0.8125, 250.0, 0.99), wd: float = 0.1, history: int = 0, frozen: float = 0.0,
) -> ref.Rule:  # fmt: skip
    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        b1 = betas[1] + (betas[0] - betas[1]) * math.exp(-(((t - 1) / betas[2]) ** 2))
        old = s.get("m", torch.zeros_like(g))
        m = s["m"] = b1 * old + (1 - b1) * g
        free = torch.ones_like(g)
        score = s.get("score", torch.zeros_like(g))
        count = int(frozen * g.numel())
        if history and t > history and count:
            free[score >= score.flatten().topk(count).values[-1]] = 0.0
            score = score * (1 - 1 / history)
        agree, one = old * m * free, torch.ones_like(g)
        grow = torch.where(agree > 0, etas[1] * one, torch.where(agree < 0, etas[0] * one, one))
        size = s["size"] = (s.get("size", torch.full_like(g, lr)) * grow).clamp(low, high)
        u = m.sign()
        if betas[3] >= 0:
            v = s["v"] = betas[3] * s.get("v", 0.0) + (1 - betas[3]) * g**2
            u = m / (1 - b1**t) / ((v / (1 - betas[3] ** t)).sqrt() + 1e-8)
        u = u * free * size
        s["score"] = score + m * u / history if history else score
        return (1 - wd * u.abs()) * p - u

    return rule


CASES: dict[str, tuple[dict[str, Any], ref.Rule]] = {
    "default": ({}, plain()),
    "decay": ({"lr": 0.01, "weight_decay": 0.3}, plain(lr=0.01, wd=0.3)),
    "sign": ({"betas": (0.3, 0.9, 20.0, -1.0)}, plain(betas=(0.3, 0.9, 20.0, -1.0))),
    "wide": ({"step_sizes": (1e-3, 1.0), "etas": (0.5, 1.5)}, plain(low=1e-3, high=1.0, etas=(0.5, 1.5))),
    "frozen": ({"score_history": 9, "frozen": 0.3}, plain(history=9, frozen=0.3)),
}


def largest_difference(options: dict[str, Any], rule: ref.Rule, last: int, backend: str = "eager") -> float:
    params = ref.start()
    ended = ref.drive(CoRe(params, backend=backend, **options), params, last=last)
    return max(float((ours - theirs).abs().max()) for ours, theirs in zip(ended, ref.follow(rule, last)))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("last", [1, 2, 10, 100])
def test_follows_the_paper(name: str, last: int) -> None:
    assert largest_difference(*CASES[name], last) < 1e-12


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_follow_the_paper() -> None:
    assert largest_difference(*CASES["default"], 12, "compile") < 1e-12


def both(ours: Callable[..., Any], theirs: Callable[..., Any], rounds: int = 30) -> None:
    left, right = ref.start(), ref.start()
    a, b = ours(left), theirs(right)
    for t in range(1, rounds):
        for p, q, grad in zip(left, right, ref.stream(t)):
            p.grad, q.grad = (grad, grad) if grad is None else (grad.clone(), grad.clone())
        a.step()
        b.step()
    for p, q in zip(left, right):
        torch.testing.assert_close(p, q, rtol=0.0, atol=1e-12)


def test_adam_without_growth() -> None:
    fixed = {"etas": (1.0, 1.0), "betas": (0.9, 0.9, 250.0, 0.999), "weight_decay": 0.0}
    both(lambda p: CoRe(p, lr=3e-3, **fixed), lambda p: torch.optim.Adam(p, lr=3e-3))


def test_rprop_without_memory() -> None:
    """While no sign changes; at a change Rprop leaves out a step."""
    x, y = (nn.Parameter(torch.full((3,), 5.0, dtype=torch.float64)) for _ in range(2))
    options: dict[str, Any] = {"lr": 1e-3, "etas": (0.5, 1.2), "step_sizes": (1e-6, 1.0)}
    ours = CoRe([x], betas=(0.0, 0.0, 1.0, -1.0), weight_decay=0.0, **options)
    theirs = torch.optim.Rprop([y], **options)
    for t in range(20):
        x.grad = torch.tensor([1.0, 2.0, -1e-200], dtype=torch.float64) * (1 + t % 3)
        y.grad = x.grad.sign()
        ours.step()
        theirs.step()
    torch.testing.assert_close(x, y, rtol=0.0, atol=1e-12)


def test_schedules_scale_the_steps_and_survive_a_restart() -> None:
    ends = []
    for factor in (1.0, 0.5):
        x = nn.Parameter(torch.zeros(2, dtype=torch.float64))
        optimizer = CoRe([x], lr=1e-3)
        for t in range(4):
            if t == 2:
                optimizer.param_groups[0]["lr"] = 1e-3 * factor
                saved, middle = optimizer.state_dict(), x.detach().clone()
                optimizer = CoRe([x], lr=0.7)
                optimizer.load_state_dict(saved)
            x.grad = torch.ones_like(x)
            optimizer.step()
        ends.append(x.detach() - middle)
    torch.testing.assert_close(ends[1], 0.5 * ends[0])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("step_sizes", (0.0, 1.0)),
        ("step_sizes", (1e-2, 1e-3)),
        ("etas", (1.2, 1.2)),
        ("etas", (0.5, 0.9)),
        ("betas", (1.0, 0.5, 250.0, 0.99)),
        ("betas", (0.5, 0.5, 0.0, 0.99)),
        ("betas", (0.5, 0.5, 250.0, 1.0)),
        ("score_history", -1),
        ("frozen", 1.0),
        ("frozen", 0.1),
    ],
)
def test_bad_options_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        CoRe(ref.start(), **{name: value})
