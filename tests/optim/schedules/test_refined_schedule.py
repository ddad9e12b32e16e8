"""Linear decay, schedules refined from gradient norms, and the recorder of norms."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stream import parameters, set_gradients

from hasten.core.errors import InputError
from hasten.optim.schedules.refined_schedule import GradNormRecorder, LinearDecay, RefinedSchedule, refine_schedule


def rates(make: Any, steps: int, lr: float = 2.0) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedule, seen = make(optimizer), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_linear_decay():
    assert rates(lambda o: LinearDecay(o, 4), 6) == [2.0, 1.5, 1.0, 0.5, 0.0, 0.0]
    assert rates(lambda o: LinearDecay(o, 6, warmup=2), 7) == [1.0, 2.0, 2.0, 1.5, 1.0, 0.5, 0.0]


def test_linear_decay_equals_torch():
    """torch's LinearLR from 1 to 0 is the same line."""
    torchs = rates(lambda o: torch.optim.lr_scheduler.LinearLR(o, 1.0, 0.0, 50), 50)
    assert rates(lambda o: LinearDecay(o, 50), 50) == pytest.approx(torchs, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(steps=st.integers(2, 400), distance=st.floats(0.1, 10), slope=st.floats(0.1, 10))
def test_worst_case_bound_of_the_last_iterate(steps: int, distance: float, slope: float):
    """|x| of slope G from distance D: the last iterate is within D G / sqrt(T)."""
    x = torch.nn.Parameter(torch.tensor([distance], dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=distance / (slope * math.sqrt(steps)))
    schedule = LinearDecay(optimizer, steps)
    for _ in range(steps):
        x.grad = slope * torch.sign(x.detach())
        optimizer.step()
        schedule.step()
    assert slope * abs(float(x.detach())) <= distance * slope / math.sqrt(steps) * (1 + 1e-9)


def closed_form(norms: list[float], power: float) -> np.ndarray:
    weights = [norm**power for norm in norms]
    raw = [w * sum(weights[t + 1 :]) / sum(weights) for t, w in enumerate(weights)]
    return np.array(raw) / max(raw)


@settings(max_examples=30, deadline=None)
@given(
    norms=st.lists(st.floats(1e-2, 1e2), min_size=2, max_size=60),
    method=st.sampled_from([("sgd", -2.0), ("adam", -1.0)]),
)
def test_refinement_is_the_closed_form(norms: list[float], method: tuple[str, float]):
    found = refine_schedule(norms, method[0], smooth=0.0)
    np.testing.assert_allclose(found, closed_form(norms, method[1]), rtol=0, atol=1e-12)
    assert found.max() == 1.0
    assert found[-1] == 0.0
    assert (found >= 0).all()


@settings(max_examples=20, deadline=None)
@given(norms=st.lists(st.floats(1e-2, 1e2), min_size=2, max_size=60), scale=st.sampled_from([1e-150, 1e-3, 1e150]))
def test_refinement_does_not_depend_on_the_unit(norms: list[float], scale: float):
    np.testing.assert_allclose(refine_schedule(np.array(norms) * scale), refine_schedule(norms), rtol=1e-9, atol=1e-12)


def test_constant_norms_give_linear_decay():
    found = refine_schedule(np.full(100, 3.0))
    np.testing.assert_allclose(found, (99 - np.arange(100)) / 99, atol=1e-12)


def test_smoothing_removes_a_spike_and_pads_by_first_norm_and_mirror():
    spiky = np.ones(40)
    spiky[20] = 1e3
    np.testing.assert_allclose(refine_schedule(spiky, smooth=0.1), refine_schedule(np.ones(40)), atol=1e-12)
    norms = [9.0, 1.0, 2.0, 3.0, 4.0, 8.0]
    # width 3: medians of (9,9,1), (9,1,2), (1,2,3), (2,3,4), (3,4,8), (4,8,4)
    smoothed = [9.0, 2.0, 2.0, 3.0, 4.0, 4.0]
    np.testing.assert_allclose(refine_schedule(norms, smooth=0.34), closed_form(smoothed, -2.0), atol=1e-12)


def test_a_zero_norm_is_floored():
    norms = np.ones(50)
    norms[10:30] = 0.0
    found = refine_schedule(norms, smooth=0.0)
    assert np.isfinite(found).all()
    assert found.max() == 1.0


@pytest.mark.parametrize(
    ("norms", "message"),
    [
        ([], "non-empty"),
        ([1.0], "at least 2"),
        ([1.0, math.nan], "finite"),
        ([1.0, -1.0], "at least 0"),
        ([0.0, 0.0], "zero"),
    ],
)
def test_bad_norms(norms: list[float], message: str):
    with pytest.raises(InputError, match=message):
        refine_schedule(norms)


def test_bad_arguments_are_named():
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    with pytest.raises(InputError, match="total_steps"):
        LinearDecay(optimizer, 0)
    with pytest.raises(InputError, match="warmup"):
        LinearDecay(optimizer, 5, warmup=5)
    with pytest.raises(InputError, match="factors"):
        RefinedSchedule(optimizer, [])
    with pytest.raises(InputError, match="smooth"):
        refine_schedule([1.0, 2.0], smooth=1.0)
    with pytest.raises(InputError, match="method"):
        refine_schedule([1.0, 2.0], "lion")
    with pytest.raises(InputError, match="norm must be one of 'l1', 'l2'"):
        GradNormRecorder(optimizer, "max")


def test_refined_schedule_follows_the_factors():
    assert rates(lambda o: RefinedSchedule(o, np.array([0.5, 1.0, 0.0])), 5) == [1.0, 2.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "make", [lambda o: LinearDecay(o, 9, warmup=3), lambda o: RefinedSchedule(o, [0.1, 0.9, 0.3, 0.2])]
)
def test_schedules_resume(make: Any):
    def stepped(schedule: Any, optimizer: Any, count: int) -> list[float]:
        seen = []
        for _ in range(count):
            optimizer.step()
            schedule.step()
            seen += schedule.get_last_lr()
        return seen

    first = torch.optim.SGD(parameters(), lr=0.7)
    schedule = make(first)
    stepped(schedule, first, 3)
    second = torch.optim.SGD(parameters(), lr=0.7)
    again = make(second)
    second.load_state_dict(first.state_dict())
    again.load_state_dict(schedule.state_dict())
    assert stepped(again, second, 4) == stepped(schedule, first, 4)


def test_recorder():
    params = parameters()
    optimizer = torch.optim.Adam(params, lr=0.0)
    l2, l1 = GradNormRecorder(optimizer), GradNormRecorder(optimizer, "l1")
    expected2, expected1 = [], []
    for t in (1, 2, 3):
        set_gradients(params, t)
        params[1].grad = None if t == 2 else params[1].grad
        flat = torch.cat([param.grad.flatten() for param in params if param.grad is not None])
        expected2.append(float(flat.norm()))
        expected1.append(float(flat.abs().sum()))
        optimizer.step()
    assert l2.norms == pytest.approx(expected2)
    assert l1.norms == pytest.approx(expected1)
    l2.remove()
    optimizer.step()
    assert len(l2.norms) == 3
    assert len(l1.norms) == 4
    for param in params:
        param.grad = None
    optimizer.step()
    assert l1.norms[-1] == 0.0
