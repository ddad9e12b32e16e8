"""Time grids decrease strictly from exactly T to exactly t_min, and refuse what is no grid."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.errors import InputError
from hasten.numerics import time_grid
from hasten.numerics.noise import EDM, VE, DiscreteVP, FlowMatching, Schedule, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), DiscreteVP.linear(), VE(), EDM(), FlowMatching(), FlowMatching(shift=3.0)]


@given(schedule=st.sampled_from(SCHEDULES), kind=st.sampled_from(tuple(time_grid.KINDS)), steps=st.integers(1, 300))
def test_grid_decreases_and_ends_exactly(schedule: Schedule, kind: str, steps: int) -> None:
    grid = time_grid.make(schedule, steps, kind)
    assert len(grid) == steps + 1
    assert (grid[0], grid[-1]) == (schedule.T, schedule.t_min)
    assert bool((torch.tensor(grid, dtype=torch.float64).diff() < 0).all())


def test_each_kind_is_uniform_in_its_variable() -> None:
    schedule = VPLinear()
    variable = {
        "uniform": lambda t: t,
        "quadratic": math.sqrt,
        "logsnr": schedule.lam,
        "karras": lambda t: schedule.rho(t) ** (1 / 7),
    }
    for kind, of in variable.items():
        spacing = torch.tensor([of(t) for t in time_grid.make(schedule, 9, kind)], dtype=torch.float64).diff()
        torch.testing.assert_close(spacing, spacing.mean().expand(9), msg=kind)


def test_karras_grid_on_edm_is_the_paper_s() -> None:
    grid = time_grid.karras(EDM(), 4, exponent=7.0)
    high, low = 80 ** (1 / 7), 0.002 ** (1 / 7)
    assert grid == pytest.approx([(high + i / 4 * (low - high)) ** 7 for i in range(5)])


def test_shift_spends_more_steps_on_noise() -> None:
    plain, shifted = (time_grid.uniform(FlowMatching(shift=shift), 10) for shift in (1.0, 3.0))
    assert all(a < b for a, b in zip(plain[1:-1], shifted[1:-1]))


@pytest.mark.parametrize(
    "times",
    [(1.0,), (0.5, 0.5), (0.1, 0.9), (1.0, 0.5, 0.6), (1.0, math.nan), (2.0, 0.5), (1.0, -0.1), (math.inf, 0.5)],
)
def test_what_is_no_grid_is_refused(times: tuple[float, ...]) -> None:
    with pytest.raises(InputError, match="grid"):
        time_grid.checked(VPLinear(), times)


def test_bad_arguments() -> None:
    with pytest.raises(InputError, match="steps"):
        time_grid.uniform(VPLinear(), 0)
    with pytest.raises(InputError, match="quadratic"):
        time_grid.make(VPLinear(), 5, "logarithmic")
    with pytest.raises(InputError, match="exponent"):
        time_grid.karras(VPLinear(), 5, exponent=0.0)
    with pytest.raises(InputError, match="not finite"):
        time_grid.logsnr(VPLinear(t_min=0.0), 5)
    with pytest.raises(InputError, match="not finite"):
        time_grid.karras(FlowMatching(T=1.0), 5)
