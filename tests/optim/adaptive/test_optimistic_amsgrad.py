"""Optimistic AMSGrad against the rule written with its hidden point, and what the extrapolation promises."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import plain_rules as ref
import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import AMSGrad, OptimisticAMSGrad, rmpe_predict

LR = 1e-2


def plain(predictor: str, steps: int, size: int = 4, wd: float = 0.0) -> list[Tensor]:
    """All tensors as one vector, the hidden point kept as such; every tensor has a gradient at every step."""
    x = torch.cat([param.detach().flatten() for param in ref.start()])
    z, m, v, w, h = x.clone(), *(torch.zeros_like(x) for _ in range(4))
    past: list[Tensor] = []
    for t in range(1, steps + 1):
        g = torch.cat([grad.flatten() for grad in grads(t)]) + wd * x
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * (g - h) ** 2
        w = torch.maximum(w, v)
        z = z - LR * m / (w.sqrt() + 1e-8)
        past = [*past, g][-size:]
        h = g
        if predictor == "rmpe" and len(past) > 2:
            u = torch.stack([b - a for a, b in pairwise(past)], dim=1)
            system = u.T @ u
            system = system / torch.linalg.eigvalsh(system).max() + 1e-3 * torch.eye(len(past) - 1)
            c = torch.linalg.inv(system.double()).sum(1)
            h = torch.stack(past[:-1], dim=1) @ (c / c.sum())
        x = z - LR * (0.9 * m + 0.1 * h) / (w.sqrt() + 1e-8)
    return list(x.split([param.numel() for param in ref.start()]))


def grads(t: int) -> list[Tensor]:
    return [torch.zeros_like(p) if grad is None else grad for p, grad in zip(ref.start(), ref.stream(t))]


def ours(steps: int, **options: Any) -> list[Tensor]:
    params = ref.start()
    optimizer = OptimisticAMSGrad(params, lr=LR, **{"backend": "eager", **options})
    for t in range(1, steps + 1):
        for param, grad in zip(params, grads(t)):
            param.grad = -grad if options.get("maximize") else grad.clone()
        optimizer.step()
    return [param.detach().flatten() for param in params]


def assert_same(left: list[Tensor], right: list[Tensor], atol: float = 1e-11) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=0.0, atol=atol)


@pytest.mark.parametrize("maximize", [False, True])
@pytest.mark.parametrize("last", [1, 2, 3, 10, 60])
def test_follows_the_paper(last: int, maximize: bool) -> None:
    assert_same(ours(last, history=4, reg=1e-3, maximize=maximize), plain("rmpe", last))
    assert_same(ours(last, predictor="last", maximize=maximize), plain("last", last))


def test_weight_decay_is_part_of_the_gradient() -> None:
    decay = 0.3
    assert_same(ours(20, history=4, reg=1e-3, weight_decay=decay), plain("rmpe", 20, wd=decay))


@pytest.mark.filterwarnings("error:an optimizer step could not be compiled")
def test_compiled_steps_follow_the_paper() -> None:
    assert_same(ours(6, predictor="last", backend="compile"), plain("last", 6))


def test_amsgrad_where_nothing_is_predicted() -> None:
    x = nn.Parameter(torch.tensor([1.0, -2.0], dtype=torch.float64))
    state = {name: torch.zeros(1, 2, dtype=torch.float64) for name in ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")}
    more = {name: torch.zeros(1, 2, dtype=torch.float64) for name in ("prediction", "ahead")}
    amsgrad, p = AMSGrad([x], lr=LR, bias_correction=False), x.detach().clone()[None]
    for t in range(1, 20):
        x.grad = torch.sin(torch.tensor([1.0 * t, 2.0 * t], dtype=torch.float64))
        numbers = {"lr": LR, "weight1": 0.1, "weight2": 0.001, "eps": 1e-8, "c0": 0.0}
        OptimisticAMSGrad.update(p, x.grad[None], **state, **more, past=torch.ones(1, 1, 2).double(), **numbers)
        amsgrad.step()
        torch.testing.assert_close((p + LR * more["ahead"])[0], x.detach())


def test_extrapolation_finds_the_limit_of_a_linear_recursion() -> None:
    matrix = torch.tensor([[0.9, 0.2], [-0.1, 0.7]], dtype=torch.float64)
    limit, x = torch.tensor([3.0, -1.0], dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    history = [x]
    for _ in range(3):
        history.append(limit + matrix @ (history[-1] - limit))
    torch.testing.assert_close(rmpe_predict(history, reg=0.0), limit)
    torch.testing.assert_close(rmpe_predict(torch.stack(history), reg=0.0), limit)


def test_extrapolation_of_little_or_of_nothing_new_is_the_last() -> None:
    first, second = torch.tensor([1.0, 2.0]), torch.tensor([0.0, 5.0])
    assert torch.equal(rmpe_predict([first, second]), second)
    assert torch.equal(rmpe_predict([second] * 4), second)

    assert torch.isfinite(rmpe_predict([first, second, first], reg=0.0)).all()


@pytest.mark.parametrize(("name", "value"), [("predictor", "mean"), ("history", 2), ("reg", -1.0), ("eps", 0.0)])
def test_bad_options_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(InputError, match=name):
        OptimisticAMSGrad(ref.start(), **{name: value})


def test_an_empty_history_is_refused() -> None:
    with pytest.raises(InputError, match="history"):
        rmpe_predict([])
