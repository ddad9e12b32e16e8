"""Ano and Anolog against their formulas.

The plain forms were compared with `optimizers/ano.py` and `optimizers/anolog.py` of Adrienkgz/ano-experiments (commit
ae4afa8): 100 steps with mixed shapes, a zero and a missing gradient and a step-wise learning rate agree to 1e-15.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import Ano, Anolog


def plain(
    beta1: Callable[[int], float],
    b2: float,
    correct: bool,
    lr: float = 1e-4,
    eps: float = 1e-8,
    decay: float = 0.0,
) -> ref.Rule:
    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        b1 = beta1(t)
        m = s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        v = s.get("v", torch.zeros_like(g))
        v = s["v"] = b2 * v + (1 - b2) * ((g**2 > v).to(g) - (g**2 < v).to(g)) * g**2
        v_hat = v / (1 - b2**t) if correct else v
        return p * (1 - lr * decay) - lr * g.abs() * m.sign() / (v_hat + eps).sqrt()

    return rule


def constant(t: int) -> float:
    return 0.92


def growing(t: int) -> float:
    return 1 - 1 / math.log(t + 2)


def published(t: int) -> float:
    return 1 - 1 / math.log(max(2, t))


CASES: dict[str, tuple[type[Ano], dict[str, Any], ref.Rule]] = {
    "ano": (Ano, {}, plain(constant, 0.99, True)),
    "ano-decay": (
        Ano,
        {"lr": 0.01, "weight_decay": 0.1, "eps": 0.1},
        plain(constant, 0.99, True, lr=0.01, decay=0.1, eps=0.1),
    ),
    "ano-quick": (Ano, {"betas": (0.92, 0.5)}, plain(constant, 0.5, True)),
    "anolog": (Anolog, {"weight_decay": 0.1}, plain(growing, 0.999, False, decay=0.1)),
    "anolog-legacy": (Anolog, {"legacy": True}, plain(published, 0.999, False)),
}


def assert_follows(name: str, backend: str, last: int) -> None:
    make, options, rule = CASES[name]
    params = ref.start()
    ours = ref.drive(make(params, backend=backend, **options), params, last=last)
    for left, right in zip(ours, ref.follow(rule, last), strict=True):
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-12)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("last", [1, 2, 10, 100])
def test_follows_the_paper(name: str, last: int) -> None:
    assert_follows(name, "eager", last)


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_follow_the_paper() -> None:
    assert_follows("ano-decay", "compile", last=12)


def test_direction_is_the_momentum_and_size_the_gradient() -> None:
    """After many gradients of 1 the momentum outweighs small gradients of the other sign."""
    x = nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = Ano([x], lr=1.0, betas=(0.9, 0.99))
    steps = []
    for grad in [1.0] * 300 + [-0.25, -0.5]:
        before = x.item()
        x.grad = torch.full_like(x, grad)
        optimizer.step()
        steps.append(before - x.item())
    assert steps[-2] == pytest.approx(0.25, rel=0.06)
    assert steps[-1] / steps[-2] == pytest.approx(2.0, rel=0.01)


@pytest.mark.parametrize("beta2", [0.5, 0.9, 0.999])
def test_second_moment_never_becomes_negative(beta2: float) -> None:
    generator = torch.Generator().manual_seed(0)
    x = nn.Parameter(torch.zeros(500))
    optimizer = Ano([x], betas=(0.9, beta2))
    for _ in range(100):
        x.grad = torch.randn(500, generator=generator) * 10 ** torch.randn(500, generator=generator)
        optimizer.step()
        assert float(optimizer.state[x]["exp_avg_sq"].min()) >= 0.0
    assert torch.isfinite(x).all()


def test_zero_gradients_move_nothing() -> None:
    x = nn.Parameter(torch.ones(3))
    optimizer = Anolog([x], lr=0.1)
    for _ in range(3):
        x.grad = torch.zeros(3)
        optimizer.step()
    assert torch.equal(x.detach(), torch.ones(3))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Ano, {"betas": (0.9, 0.4)}, r"betas\[1\]"),
        (Ano, {"betas": (1.0, 0.9)}, r"betas\[0\]"),
        (Ano, {"eps": 0.0}, "eps"),
        (Anolog, {"beta2": 1.0}, "beta2"),
        (Anolog, {"eps": 0.0}, "eps"),
    ],
)
def test_bad_options(make: type[Ano], options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(ref.start(), **options)
