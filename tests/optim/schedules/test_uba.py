"""The budget-aware schedule: the properties that pin its curve down, cycles, warm-up, bad input."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.errors import InputError
from hasten.optim.schedules.uba import UBASchedule


def sgd(lr: float = 1.0) -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def rates(steps: int, lr: float = 1.0, **options: Any) -> list[float]:
    optimizer = sgd(lr)
    schedule, seen = UBASchedule(optimizer, **options), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_two_is_torchs_cosine():
    optimizer = sgd(0.7)
    cosine, expected = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 50, eta_min=0.1), []
    for _ in range(51):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    assert rates(51, lr=0.7, total_steps=50, lr_min=0.1) == pytest.approx(expected, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(phi=st.floats(0, 20), steps=st.integers(1, 60), low=st.floats(0, 1))
def test_falls_from_start_to_end(phi: float, steps: int, low: float):
    course = rates(steps + 2, total_steps=steps, phi=phi, lr_min=low)
    assert course[0] == pytest.approx(1.0, abs=1e-12)
    assert course[steps:] == [low, low]
    assert all(after <= before + 1e-12 for before, after in pairwise(course))


def test_middle_of_the_curve():
    """At t = T/2 the cosine is 0, so the height is 2 / (phi + 2)."""
    for phi in (0.25, 0.5, 1.0, 2.0, 5.0, 10.0):
        assert rates(51, total_steps=100, phi=phi)[50] == pytest.approx(2 / (phi + 2), abs=1e-12)


def test_smaller_shapes_stay_high_for_longer():
    courses = [rates(40, total_steps=40, phi=phi) for phi in (0.0, 0.25, 1.0, 2.0, 5.0, 10.0)]
    for higher, lower in pairwise(courses):
        assert all(a > b for a, b in zip(higher[1:], lower[1:]))
    assert courses[0] == pytest.approx([1.0] * 40)


def test_cycles_restart_the_curve():
    twice = rates(41, total_steps=40, phi=1.0, cycles=2)
    once = rates(20, total_steps=20, phi=1.0)
    assert twice == pytest.approx([*once, *once, 0.0])


def test_warmup_comes_first():
    course = rates(16, lr=2.0, total_steps=15, warmup=5, lr_min=0.5)
    assert course[:5] == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0])
    assert course[5:] == pytest.approx(rates(11, lr=2.0, total_steps=10, lr_min=0.5))


def test_bad_arguments_are_named():
    for name, value in {"total_steps": 0, "phi": -0.1, "lr_min": -1.0, "warmup": 9, "cycles": 10}.items():
        with pytest.raises(InputError, match=name):
            UBASchedule(sgd(), **{"total_steps": 9, name: value})
    with pytest.raises(InputError, match=r"learning rate 1\.0"):
        UBASchedule(sgd(), 9, lr_min=1.5)
    with pytest.raises(InputError, match="phi"):
        UBASchedule(sgd(), 9, phi=math.nan)
