"""Each rule against its plain form in `plain_rules.py`, eagerly and compiled.

The plain forms themselves were compared with the authors' code (ADOPT, AdEMAMix) and with adabelief-pytorch 0.2.0,
lion-pytorch 0.2.5, came-pytorch 0.1.3 and torch 2.13's Adafactor: 100 steps with mixed shapes, a zero and a missing
gradient, and a step-wise learning rate agree to 1e-14 in double precision, Lion to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core.errors import InputError
from hasten.optim import ADOPT, CAME, AdaBelief, Adafactor, AdEMAMix, Lion, LionK, lion_lyapunov

Make = Callable[..., Optimizer]


def _l2(c: Tensor) -> Tensor:
    return c / c.norm() if c.norm() > 0 else c


def _rows(c: Tensor) -> Tensor:
    norm = c.flatten(1).norm(dim=1).view(-1, *[1] * (c.ndim - 1)) if c.ndim > 1 else c.abs()
    return torch.where(norm > 0, c / norm, 0.0)


def _lp(c: Tensor) -> Tensor:
    norm = (c.abs() ** 4).sum() ** 0.25
    return c.sign() * (c.abs() / norm) ** 3 if norm > 0 else c


CASES: dict[str, tuple[Make, dict[str, Any], ref.Rule]] = {
    "adopt": (ADOPT, {}, ref.adopt()),
    "adopt-coupled": (ADOPT, {"weight_decay": 0.1, "lr": 0.01}, ref.adopt(wd=0.1, lr=0.01)),
    "adopt-decoupled": (ADOPT, {"weight_decay": 0.1, "decouple": True}, ref.adopt(wd=0.1, decouple=True)),
    "adopt-first-version": (ADOPT, {"clip_lambda": None}, ref.adopt(clip=None)),
    "adopt-own-clip": (ADOPT, {"clip_lambda": lambda k: 0.1 * k}, ref.adopt(clip=lambda k: 0.1 * k)),
    "adabelief": (AdaBelief, {}, ref.adabelief()),
    "adabelief-plain": (AdaBelief, {"rectify": False, "eps": 1e-8}, ref.adabelief(rectify=False, eps=1e-8)),
    "adabelief-coupled": (
        AdaBelief,
        {"weight_decay": 0.1, "weight_decouple": False, "amsgrad": True},
        ref.adabelief(wd=0.1, decouple=False, amsgrad=True),
    ),
    "adabelief-fixed": (AdaBelief, {"weight_decay": 0.01, "fixed_decay": True}, ref.adabelief(wd=0.01, fixed=True)),
    "ademamix": (AdEMAMix, {"weight_decay": 0.1}, ref.ademamix(wd=0.1)),
    "ademamix-warm": (
        AdEMAMix,
        {"alpha_warmup": 50, "beta3_warmup": 70, "alpha": 5.0},
        ref.ademamix(alpha_warmup=50, beta3_warmup=70, alpha=5.0),
    ),
    "ademamix-slow-only": (AdEMAMix, {"betas": (0.0, 0.99, 0.999)}, ref.ademamix(betas=(0.0, 0.99, 0.999))),
    "lion": (Lion, {"weight_decay": 0.3}, ref.lion_k(torch.sign, wd=0.3)),
    "lion-k-l1": (LionK, {"weight_decay": 0.3}, ref.lion_k(torch.sign, wd=0.3)),
    "lion-k-l2": (LionK, {"kappa": "l2", "lr": 0.01}, ref.lion_k(_l2, lr=0.01)),
    "lion-k-lp": (LionK, {"kappa": "lp", "lr": 0.01}, ref.lion_k(_lp, lr=0.01)),
    "lion-k-rows": (LionK, {"kappa": "group_l2"}, ref.lion_k(_rows)),
    "lion-k-huber": (LionK, {"kappa": "huber", "eps": 0.5}, ref.lion_k(lambda c: torch.clamp(c / 0.5, -1, 1))),
    "lion-k-softsign": (LionK, {"kappa": "softsign", "eps": 0.5}, ref.lion_k(lambda c: c / (c**2 + 0.25).sqrt())),
    "lion-k-entropy": (LionK, {"kappa": "entropy", "eps": 0.5}, ref.lion_k(lambda c: torch.tanh(c / 0.5))),
    "lion-k-own": (LionK, {"kappa": torch.atan}, ref.lion_k(torch.atan)),
    "adafactor": (Adafactor, {}, ref.adafactor()),
    "adafactor-warm": (
        Adafactor,
        {"warmup_init": True, "weight_decay": 0.1, "beta1": 0.9},
        ref.adafactor(warmup=True, wd=0.1, b1=0.9),
    ),
    "adafactor-fixed": (
        Adafactor,
        {"lr": 1e-3, "relative_step": False, "scale_parameter": False, "clip_threshold": 0.5},
        ref.adafactor(lr=1e-3, relative=False, scale=False, clip=0.5),
    ),
    "came": (CAME, {"lr": 1e-3, "weight_decay": 0.1}, ref.came(lr=1e-3, wd=0.1)),
}
COMPILED = ("adopt", "adabelief-plain", "ademamix-warm", "lion", "lion-k-l2", "adafactor", "came")


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("last", [1, 2, 10, 100])
def test_follows_the_paper(name: str, last: int) -> None:
    make, options, rule = CASES[name]
    params = ref.start()
    ended = ref.drive(make(params, backend="eager", **options), params, last=last)
    for ours, plain in zip(ended, ref.follow(rule, last)):
        torch.testing.assert_close(ours, plain, rtol=0.0, atol=1e-12)


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
@pytest.mark.parametrize("name", COMPILED)
def test_compiled_steps_follow_the_paper(name: str) -> None:
    make, options, rule = CASES[name]
    params = ref.start()
    ended = ref.drive(make(params, backend="compile", **options), params, last=12)
    for ours, plain in zip(ended, ref.follow(rule, 12)):
        torch.testing.assert_close(ours, plain, rtol=0.0, atol=1e-12)


def test_adafactor_is_torch_adafactor() -> None:
    params, others = ref.start(), ref.start()
    ours = ref.drive(Adafactor(params, lr=1e-2), params)
    theirs = ref.drive(torch.optim.Adafactor(others, lr=1e-2, eps=(1e-30, 1e-3)), others)
    for left, right in zip(ours, theirs):
        torch.testing.assert_close(left, right, rtol=0.0, atol=1e-12)


def test_adopt_survives_a_zero_first_gradient() -> None:
    x = nn.Parameter(torch.zeros(3))
    optimizer = ADOPT([x], lr=0.1)
    for grad in (0.0, 1e3, -1e3, 1e-20):
        x.grad = torch.full((3,), grad)
        optimizer.step()
    assert torch.isfinite(x).all()
    assert x.abs().max() < 1.0


def test_adabelief_step_grows_under_a_constant_gradient() -> None:
    """The closed form: after 50 steps at g = 1, with s the sum of b2^(t-i) (1-b2) (b1^i)^2."""
    x = nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = AdaBelief([x], lr=1e-3, rectify=False)
    for _ in range(50):
        before = x.item()
        x.grad = torch.ones((), dtype=torch.float64)
        optimizer.step()
    s = sum(0.999 ** (50 - i) * 0.001 * 0.81**i for i in range(1, 51))
    assert (before - x.item()) / 1e-3 == pytest.approx(math.sqrt((1 - 0.999**50) / s), rel=1e-6)


def test_lion_k_of_a_zero_vector_is_zero() -> None:
    for kappa in ("l1", "l2", "lp", "group_l2", "huber", "softsign", "entropy"):
        x = nn.Parameter(torch.ones(4, 3))
        optimizer = LionK([x], kappa=kappa, lr=0.1)
        x.grad = torch.zeros(4, 3)
        optimizer.step()
        assert torch.equal(x, torch.ones(4, 3))


@pytest.mark.parametrize("kappa", ["l1", "l2"])
def test_lion_decreases_its_lyapunov_function(kappa: str) -> None:
    target = torch.tensor([0.5, -3.0, 1.0, 0.2], dtype=torch.float64)
    x = nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = LionK([x], lr=1e-3, weight_decay=0.5, kappa=kappa)
    seen = []
    for _ in range(3000):
        x.grad = (x - target).detach()
        optimizer.step()
        seen.append(lion_lyapunov(optimizer, 0.5 * float(((x.detach() - target) ** 2).sum())))
    assert all(math.isfinite(value) for value in seen)
    steps = torch.tensor(seen).diff()
    # With steps of size lr the function falls up to terms of the order lr^2 (Chen et al., theorem 4.1).
    assert steps.max() < 4 * 1e-6 * 4
    assert seen[-1] < 0.7 * seen[0]


def test_lyapunov_function_refuses_what_it_is_not_made_for() -> None:
    x = nn.Parameter(torch.ones(2))
    with pytest.raises(InputError, match="kappa"):
        lion_lyapunov(LionK([x], weight_decay=0.1, kappa="huber"), 0.0)
    with pytest.raises(InputError, match="weight_decay"):
        lion_lyapunov(LionK([x]), 0.0)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (ADOPT, {"eps": 0.0}, "eps"),
        (ADOPT, {"clip_lambda": -1.0}, "clip_lambda"),
        (ADOPT, {"betas": (0.9, 1.0)}, r"betas\[1\]"),
        (AdEMAMix, {"alpha_warmup": 0}, "alpha_warmup"),
        (LionK, {"kappa": "l3"}, "kappa"),
        (LionK, {"kappa": "lp", "order": 1.0}, "order"),
        (Adafactor, {"decay_rate": 0.8}, "decay_rate"),
        (Adafactor, {"clip_threshold": 0.0}, "clip_threshold"),
        (CAME, {"eps": (0.0, 1e-16)}, r"eps\[0\]"),
    ],
)
def test_bad_options(make: Make, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(ref.start(), **options)


def test_memory() -> None:
    """Bytes of state, relative to Adam's, on a 64 x 64 layer."""

    def size(make: Make, **options: Any) -> int:
        x = nn.Parameter(torch.ones(64, 64))
        optimizer = make([x], **options)
        x.grad = torch.ones(64, 64)
        optimizer.step()
        state = optimizer.state[x].values()
        return sum(t.numel() * t.element_size() for t in state if torch.is_tensor(t) and t.ndim > 0)

    adam = size(torch.optim.Adam)
    assert size(Adafactor) / adam == pytest.approx(2 * 64 / (2 * 64 * 64))
    assert size(CAME, lr=1e-3) / adam == pytest.approx((64 * 64 + 4 * 64) / (2 * 64 * 64))
    assert size(Lion) / adam == 0.5
    assert size(AdEMAMix) / adam == 1.5
