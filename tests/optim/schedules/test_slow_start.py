"""The shape of slow start and fast decay."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch

from hasten.core.errors import InputError
from hasten.optim import SlowStartFastDecay


def rates(steps: int, **options: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2.0)
    schedule, seen = SlowStartFastDecay(optimizer, **options), []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return seen


def test_rises_in_a_line_and_decays_as_an_exponential():
    found = rates(24, total_steps=20)
    assert found[:10] == pytest.approx([2.0 * (0.1 + 0.9 * t / 10) for t in range(10)])
    assert found[10:21] == pytest.approx([2.0 * math.exp(-5.0 * (t - 10) / 10) for t in range(10, 21)])
    assert found[20:] == pytest.approx([2.0 * math.exp(-5.0)] * 4)
    assert max(found) == found[10] == 2.0


@pytest.mark.parametrize(("peak", "start", "gamma"), [(0.0, 0.1, 5.0), (0.3, 0.0, 2.0), (0.9, 1.0, 0.0)])
def test_is_never_above_the_peak_and_unimodal(peak: float, start: float, gamma: float):
    found = rates(30, total_steps=30, peak=peak, start=start, gamma=gamma)
    top = found.index(max(found))
    assert all(a <= b for a, b in pairwise(found[: top + 1]))
    assert all(a >= b for a, b in pairwise(found[top:]))
    assert max(found) <= 2.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"total_steps": 0}, "total_steps"),
        ({"peak": 1.0}, "peak"),
        ({"start": 1.5}, "start"),
        ({"gamma": -1.0}, "gamma"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        rates(1, **{"total_steps": 10, **options})
