"""SPAM against the published code, its sparse form, and its clipping before other optimizers."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from recorded_stream import digest, parameters, set_gradients
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import SPAM, AdEMAMix, Lion, SpikeClip
from hasten.optim.filters.spam import warmth

SHORT: dict[str, Any] = {"lr": 0.01, "warmup_steps": 10, "reset_interval": 25, "grace": 5, "threshold": 50.0}
# Digests after 1, 10, 30, 60 steps of galore_torch/SPAM.py of TianjinYellow/SPAM-Optimizer at commit e8185fb, float64;
# warmup_steps 10, DeltaT 25, grad_accu_steps 5, threshold 50; every seventh gradient times 1e5.
GOLDEN: list[tuple[dict[str, Any], list[list[float]]]] = [
    (
        {},
        [
            [-0.6374421995667232, -13.808987615810528],
            [-0.6093403842846274, -13.290932234473567],
            [-0.592757075237325, -13.060726333270889],
            [-0.6571428726993938, -13.715452306654045],
        ],
    ),
    (
        {"weight_decay": 0.1, "betas": (0.8, 0.95)},
        [
            [-0.636805594425208, -13.795190574845137],
            [-0.5910392425312463, -13.334368141799203],
            [-0.48588694793618736, -12.669914002023257],
            [-0.5426789225795757, -12.9364855071409],
        ],
    ),
]


def spiked(params: list[nn.Parameter], t: int) -> None:
    set_gradients(params, t)
    if t % 7 == 0:
        for param in params:
            assert param.grad is not None
            param.grad.mul_(1e5)


@pytest.mark.parametrize(("hyper", "expected"), GOLDEN)
def test_published_trajectory(hyper: dict[str, Any], expected: list[list[float]]):
    params = parameters()
    optimizer = SPAM(params, **SHORT, **hyper)
    found = []
    for t in range(1, 61):
        spiked(params, t)
        optimizer.step()
        if t in (1, 10, 30, 60):
            found.append(digest(params))
    torch.testing.assert_close(*torch.tensor([found, expected], dtype=torch.float64), rtol=0, atol=1e-12)


def test_without_spikes_and_resets_it_is_adam():
    ours, theirs = parameters(), parameters()
    optimizers = SPAM(ours, lr=0.01, reset_interval=0), torch.optim.Adam(theirs, lr=0.01, eps=0.0)
    optimizers[0].param_groups[0]["eps"] = 0.0
    for t in range(1, 41):
        for params, optimizer in zip((ours, theirs), optimizers):
            set_gradients(params, t)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-14)


def test_restarted_correction_steps_like_a_fresh_adam_after_a_reset():
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = SPAM([x], lr=0.1, eps=0.0, reset_interval=8, warmup_steps=0, restart_bias_correction=True)
    for _ in range(12):
        before = x.detach().clone()
        x.grad = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
        optimizer.step()
        torch.testing.assert_close(x - before, -0.1 * x.grad.sign(), rtol=1e-9, atol=0)


def test_an_entry_that_never_had_a_gradient_can_still_move():
    x = nn.Parameter(torch.zeros(2))
    optimizer = SPAM([x], grace=2)
    for t in range(1, 6):
        x.grad = torch.tensor([1.0, 0.0 if t < 5 else 1.0])
        optimizer.step()
    assert x[1] < 0


def test_warmth():
    assert warmth(0, 150) == pytest.approx(0.01)
    assert warmth(150, 150) == warmth(500, 150) == warmth(0, 0) == 1.0
    rising = [warmth(since, 20) for since in range(21)]
    assert rising == sorted(rising)


def steps(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], first: int, last: int) -> list[Tensor]:
    for t in range(first, last):
        set_gradients(params, t)
        optimizer.step()
    return [param.detach().clone() for param in params]


def test_density_trains_the_chosen_entries_only():
    params = [nn.Parameter(torch.ones(8, 10)), nn.Parameter(torch.ones(8, 10)), nn.Parameter(torch.ones(5))]
    optimizer = SPAM(params, lr=0.01, density=0.25, reset_interval=6, weight_decay=0.1)
    dense = SPAM([nn.Parameter(torch.ones(8, 10))], lr=0.01, reset_interval=6, weight_decay=0.1)
    moved = steps(optimizer, params, 1, 6)
    assert [int((tensor != 1).sum()) for tensor in moved] == [20, 20, 5]
    expected = steps(dense, dense.param_groups[0]["params"], 1, 6)[0]
    chosen = moved[0] != 1
    torch.testing.assert_close(moved[0][chosen], expected[chosen])
    held = optimizer.state[params[0]]
    assert sum(held[name].nbytes for name in ("exp_avg", "exp_avg_sq", "chosen")) == 20 * 12
    renewed = steps(optimizer, params, 6, 11)
    fresh = (renewed[0] != moved[0]) & ~chosen
    assert fresh.sum() > 5, "other entries train after the reset"
    assert int((renewed[0] != moved[0]).sum()) == 20


def test_sparse_state_survives_a_checkpoint():
    params = [nn.Parameter(torch.ones(40, 50)), nn.Parameter(torch.ones(4, 5))]
    optimizer = SPAM(params, lr=0.01, density=0.5, reset_interval=4)
    steps(optimizer, params, 1, 7)
    others = [nn.Parameter(param.detach().clone()) for param in params]
    resumed = SPAM(others, lr=0.01, density=0.5, reset_interval=4)
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert resumed.state[others[0]]["chosen"].dtype == torch.int32
    assert all(map(torch.equal, steps(optimizer, params, 7, 14), steps(resumed, others, 7, 14)))


@pytest.mark.parametrize("base", [torch.optim.Adam, torch.optim.NAdam, AdEMAMix])
def test_filter_cuts_by_the_optimizers_own_moment(base: Any):
    x = nn.Parameter(torch.zeros(3, dtype=torch.float64))
    optimizer = base([x], lr=0.01)
    SpikeClip(optimizer, grace=3)
    for t in range(1, 7):
        spike = torch.tensor([1e6 if t == 6 else 1.0, 1e6 if t == 2 else 1.0, -1.0], dtype=torch.float64)
        second = optimizer.state[x]["exp_avg_sq"].clone() if t > 1 else None
        x.grad = spike.clone()
        optimizer.step()
        if t < 6:
            assert torch.equal(x.grad, spike), "nothing is cut within the grace, nor what is no spike"
        else:
            assert second is not None
            bound = (5000 * second).sqrt()
            torch.testing.assert_close(x.grad, torch.minimum(spike.abs(), bound) * spike.sign())
            assert x.grad[0] < 1e6


def test_filter_with_resets_is_spam():
    """Before Adam without weight decay it is the same method."""
    ours, theirs = parameters(), parameters()
    adam = torch.optim.Adam(theirs, lr=0.01, eps=0.0)
    SpikeClip(adam, threshold=50.0, grace=5, reset_interval=25, warmup_steps=10)
    spam = SPAM(ours, **{**SHORT, "eps": 0.0})
    for t in range(1, 61):
        for params, optimizer in ((ours, spam), (theirs, adam)):
            spiked(params, t)
            optimizer.step()
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


class Unknown(torch.optim.SGD):
    """Stands for an optimizer of somebody else."""


def test_optimizers_without_a_second_moment_are_refused():
    Unknown.__module__ = "somebody.elses"
    x = nn.Parameter(torch.zeros(2))
    for optimizer in (torch.optim.SGD([x], lr=0.1), Lion([x]), torch.optim.RMSprop([x])):
        with pytest.raises(InputError, match=f"{type(optimizer).__name__} keeps none"):
            SpikeClip(optimizer)
        assert not optimizer._optimizer_step_pre_hooks
    optimizer = Unknown([x], lr=0.1)
    SpikeClip(optimizer)
    x.grad = torch.ones(2)
    optimizer.step()
    with pytest.raises(InputError, match="Unknown keeps none"):
        optimizer.step()


@pytest.mark.parametrize(
    ("make", "hyper"),
    [
        (SPAM, {"density": 0.0}),
        (SPAM, {"threshold": -1.0}),
        (SPAM, {"reset_interval": -1}),
        (SPAM, {"density": 0.5, "reset_interval": 0}),
        (SPAM, {"grace": 1.5}),
        (SpikeClip, {"threshold": math.nan}),
        (SpikeClip, {"reset_interval": 0}),
    ],
)
def test_bad_arguments_are_named(make: Any, hyper: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(hyper))):
        make(parameters() if make is SPAM else None, **hyper)
