"""AMSGrad is PyTorch's where that has it; the rest is compared with the formulas of the paper."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import AMSGrad


def assert_close(ours: list[Tensor], theirs: list[Tensor], atol: float = 1e-12) -> None:
    for left, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(left, right, rtol=0.0, atol=atol)


@pytest.mark.parametrize("options", [{}, {"weight_decay": 0.1, "lr": 0.01}, {"betas": (0.0, 0.1), "eps": 0.1}], ids=str)
@pytest.mark.parametrize("last", [1, 2, 10, 200])
def test_is_torch_adam_with_amsgrad(options: dict[str, Any], last: int) -> None:
    params, others = ref.start(), ref.start()
    ours = ref.drive(AMSGrad(params, backend="eager", **options), params, last=last)
    theirs = ref.drive(torch.optim.Adam(others, amsgrad=True, **options), others, last=last)
    assert_close(ours, theirs)


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_are_torch_adam_with_amsgrad() -> None:
    params, others = ref.start(), ref.start()
    ours = ref.drive(AMSGrad(params, backend="compile"), params, last=12)
    theirs = ref.drive(torch.optim.Adam(others, amsgrad=True), others, last=12)
    assert_close(ours, theirs)


def plain(correct: bool, mean: bool, lr: float = 1e-3, b1: float = 0.9, b2: float = 0.999) -> ref.Rule:
    def rule(p: Tensor, g: Tensor, s: dict[str, Any], t: int) -> Tensor:
        s.setdefault("squares", []).append(g**2)
        weights = [1 / t] * t if mean else [(1 - b2) * b2 ** (t - i) for i in range(1, t + 1)]
        v = torch.stack([w * square for w, square in zip(weights, s["squares"])]).sum(0)
        s["m"] = b1 * s.get("m", 0.0) + (1 - b1) * g
        s["w"] = v if mean else torch.maximum(s.get("w", torch.zeros_like(g)), v)
        m, w = s["m"], s["w"]
        if correct:
            m, w = m / (1 - b1**t), w / (1.0 if mean else 1 - b2**t)
        return p - lr * m / (w.sqrt() + 1e-8)

    return rule


@pytest.mark.parametrize("correct", [True, False])
@pytest.mark.parametrize("mean", [True, False])
def test_follows_the_paper(correct: bool, mean: bool) -> None:
    params = ref.start()
    schedule = "1-1/t" if mean else None
    optimizer = AMSGrad(params, bias_correction=correct, b2_schedule=schedule)
    assert_close(ref.drive(optimizer, params, last=40), ref.follow(plain(correct, mean), 40))


def test_the_denominator_never_falls() -> None:
    x = nn.Parameter(torch.zeros(2))
    optimizer = AMSGrad([x], betas=(0.0, 0.5))
    seen = [torch.zeros(2)]
    for grad in (1.0, 10.0, 0.1, 0.0, 20.0, 1.0):
        x.grad = torch.full((2,), grad)
        optimizer.step()
        seen.append(optimizer.state[x]["max_exp_avg_sq"].clone())
    assert all((after >= before).all() for before, after in pairwise(seen))
    assert seen[2][0] == seen[4][0] == pytest.approx(0.5 * (0.5 + 100), rel=1e-6)


def test_adam_nc_keeps_two_tensors_and_takes_any_first_gradient() -> None:
    x = nn.Parameter(torch.zeros(3))
    optimizer = AMSGrad([x], lr=0.1, b2_schedule="1-1/t")
    for grad in (0.0, 1e3, -1e3):
        x.grad = torch.full((3,), grad)
        optimizer.step()
    assert set(optimizer.state[x]) == {"step", "exp_avg", "exp_avg_sq"}
    assert torch.isfinite(x).all()
    assert math.isclose(float(optimizer.state[x]["exp_avg_sq"][0]), 2e6 / 3, rel_tol=1e-6)


def test_bad_schedule_is_named() -> None:
    with pytest.raises(InputError, match=r"b2_schedule must be one of None, '1-1/t'; got '1/t'"):
        AMSGrad(ref.start(), b2_schedule="1/t")
