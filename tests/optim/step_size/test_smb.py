"""SMB and SMBi against the authors' code, the model's step, and losses that cannot be used."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stream import STEPS, digest, parameters
from torch import Tensor, nn

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.run import run
from hasten.optim import NonFiniteGradientError
from hasten.optim.step_size.smb import CARD, SMB, model_step

INDEPENDENT = pytest.mark.parametrize("independent", [False, True])


def loss_at(params: Any, t: int) -> Tensor:
    """A convex loss that changes from batch to batch: weighted log cosh around moving points."""
    total = torch.zeros((), dtype=torch.float64)
    for place, p in enumerate(params):
        i = torch.arange(p.numel(), dtype=torch.float64).reshape(p.shape)
        weight = 1 + i + 0.5 * math.sin(t + place)
        total = total + (weight * torch.log(torch.cosh(p - 0.3 * torch.cos(0.7 * t + i)))).sum()
    return total


def advance(optimizer: SMB, params: Any, first: int, last: int) -> None:
    for t in range(first, last + 1):
        optimizer.step(lambda t=t: loss_at(params, t))


# Digests after 1, 2, 10, 100 steps of source/smbsolve/smb.py of sibirbil/SMB at commit 17fb8ba, float64.
GOLDEN: list[tuple[dict[str, Any], list[list[float]]]] = [
    (
        {"lr": 0.05},
        [
            [-0.20995512808735894, -10.20705763676856],
            [0.14248670543411962, -7.166571986648011],
            [1.0239000885697571, 2.1569157851819227],
            [-0.09357352176073674, -0.7870771167527671],
        ],
    ),
    (
        {"lr": 1.0},
        [
            [0.028676351051193427, -5.239627609378151],
            [-0.3792885539363985, -4.6224980791088806],
            [-0.05028802435582172, -0.37665809036937814],
            [-0.18960020204407144, -0.7957489017521442],
        ],
    ),
    (
        {"lr": 1.0, "independent_batch": True},
        [
            [-0.627443175502198, -13.769001544587592],
            [0.25969939844661094, -2.9233492513368153],
            [0.40795181247313717, 2.6508535508549587],
            [0.07904021287285867, 0.10319458294845596],
        ],
    ),
    (
        {"lr": 0.5, "autoschedule": True, "n_batches_per_epoch": 7},
        [
            [-0.4076802216312852, -8.945117924609193],
            [-0.34667546735640115, -6.050741311620362],
            [0.07552600817885427, 0.022409326087860837],
            [0.07236345478848327, -0.08728180404305175],
        ],
    ),
    (
        {"lr": 0.2, "autoschedule": True, "n_batches_per_epoch": 7, "independent_batch": True, "gamma": 0.5},
        [
            [1.042509014157156, 0.4787740866885194],
            [1.071771979889235, 3.1680361440932474],
            [0.13673074154040588, -0.3463229937908163],
            [-0.002471720869376276, -0.30174769092437037],
        ],
    ),
]


@pytest.mark.parametrize(("hyper", "expected"), GOLDEN)
def test_authors_trajectory(hyper: dict[str, Any], expected: list[list[float]]):
    params = parameters()
    optimizer, found, t = SMB(params, **hyper), [], 0
    for end in STEPS:
        advance(optimizer, params, t + 1, end)
        t = end
        found.append(digest(params))
    torch.testing.assert_close(*torch.tensor([found, expected], dtype=torch.float64), rtol=0, atol=1e-11)


vectors = st.lists(st.floats(-10, 10), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(g=vectors, trial=vectors, lr=st.floats(1e-3, 1e3), eta=st.floats(0.1, 0.99))
def test_the_models_step_descends_and_is_shorter_than_the_trial(
    g: list[float], trial: list[float], lr: float, eta: float
):
    a, b = torch.tensor([g, trial], dtype=torch.float64)
    if a.norm() < 1e-3:
        return
    s, y = -lr * a, b - a
    first, second, third = model_step(
        float(s @ s), float(y @ y), float(y @ s), float(a @ a), float(y @ a), float(s @ a), eta
    )
    step = first * s + second * a + third * y
    assert step.norm() <= eta * s.norm() * (1 + 1e-9)
    assert step @ a < 0


def test_an_accepted_trial_is_the_sgd_step():
    params, twins = parameters(), parameters()
    optimizer, sgd = SMB(params, lr=1e-3), torch.optim.SGD(twins, lr=1e-3)
    for t in range(1, 6):
        advance(optimizer, params, t, t)
        sgd.zero_grad()
        loss_at(twins, t).backward()
        sgd.step()
    for x, y in zip(params, twins):
        torch.testing.assert_close(x, y, rtol=1e-14, atol=0)


def test_a_failed_trial_of_the_independent_form_is_undone():
    params = parameters()
    optimizer = SMB(params, lr=50.0, independent_batch=True)
    advance(optimizer, params, 1, 1)
    assert all(torch.equal(x, y) for x, y in zip(params, parameters()))
    advance(optimizer, params, 2, 2)
    assert not torch.equal(params[0], parameters()[0])


@INDEPENDENT
def test_a_tensor_with_zero_gradient_stays(independent: bool):
    x, still = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    optimizer = SMB([x, still], lr=100.0, independent_batch=independent)
    for _ in range(4):
        optimizer.step(lambda: (x**2).sum() + (0.0 * still).sum())
    assert torch.equal(still.detach(), torch.ones(3, dtype=torch.float64))
    assert torch.isfinite(x).all()
    assert not torch.equal(x.detach(), still.detach())


@pytest.mark.parametrize(("lr", "moves"), [(1e-3, "up"), (100.0, "down")])
def test_the_schedule_moves_the_learning_rate(lr: float, moves: str):
    params = parameters()
    optimizer = SMB(params, lr=lr, autoschedule=True, n_batches_per_epoch=5, beta=0.5)
    advance(optimizer, params, 1, 5)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(lr * (2 if moves == "up" else 0.5))


def test_the_schedule_stops_at_its_bound():
    params = parameters()
    optimizer = SMB(params, lr=1e-3, autoschedule=True, n_batches_per_epoch=1, beta=0.5, lr_max=3e-3)
    advance(optimizer, params, 1, 4)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(2e-3)


def test_an_error_in_the_second_evaluation_moves_nothing():
    x = nn.Parameter(torch.ones(3))
    calls = iter([True, False])

    def closure() -> Tensor:
        if not next(calls):
            raise KeyError("batch lost")
        return (x**2).sum()

    with pytest.raises(KeyError):
        SMB([x]).step(closure)
    assert torch.equal(x.detach(), torch.ones(3))


def test_closures_that_do_not_fit_are_named():
    x = nn.Parameter(torch.ones(3))
    optimizer = SMB([x])
    with pytest.raises(InputError, match="needs a closure"):
        optimizer.step()
    with pytest.raises(InputError, match="with its graph"):
        optimizer.step(lambda: 1.0)

    def differentiated() -> Tensor:
        loss = (x**2).sum()
        loss.backward()
        return loss

    with pytest.raises(InputError, match=r"called backward\(\)"):
        optimizer.step(differentiated)
    with pytest.raises(NonFiniteGradientError, match="loss is nan"):
        optimizer.step(lambda: x.sum() + math.nan)


@pytest.mark.parametrize(
    "hyper", [{"eta": 1.0}, {"c": 0.0}, {"beta": 1.5}, {"gamma": -0.1}, {"lr_max": 0.0}, {"n_batches_per_epoch": 0}]
)
def test_bad_arguments_are_named(hyper: dict[str, float]):
    with pytest.raises(InputError, match=next(iter(hyper))):
        SMB(parameters(), **hyper)


def test_both_forms_must_not_be_mixed():
    first, second, _ = parameters()
    with pytest.raises(InputError, match="independent_batch"):
        SMB([{"params": [first]}, {"params": [second], "independent_batch": True}])


@INDEPENDENT
def test_trains_on_batches(independent: bool):
    trace = run(CARD.make(independent_batch=independent), problem("digits-mlp"), budget=150, every=150)
    assert trace.status in ("budget", "reached"), trace.message
    assert trace.final < 0.7 * trace.metric[0]
