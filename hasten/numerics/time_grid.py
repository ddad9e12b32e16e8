"""Time grids of a sampler: where, between noise and data, its steps begin and end."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.numerics.noise import Schedule

Grid = tuple[float, ...]


def uniform(schedule: Schedule, steps: int) -> Grid:
    """Uniform in t (in the shifted t of a flow with a shift)."""
    return _between(schedule, steps, schedule.unshifted, schedule.shifted)


def quadratic(schedule: Schedule, steps: int) -> Grid:
    """Uniform in the square root of t: finer towards clean data."""
    return _between(schedule, steps, torch.sqrt, torch.square)


def logsnr(schedule: Schedule, steps: int) -> Grid:
    """Uniform in `lam`, the half log signal-to-noise ratio."""
    return _between(schedule, steps, schedule.lam, schedule.t_of_lam)


def karras(schedule: Schedule, steps: int, exponent: float = 7.0) -> Grid:
    """Uniform in `rho^(1/exponent)`, `rho = sigma/alpha`. Source: Karras et al. (2022), arXiv 2206.00364."""
    check.positive("exponent", exponent)
    return _between(
        schedule,
        steps,
        lambda t: schedule.rho(t) ** (1.0 / exponent),
        lambda u: schedule.t_of_rho(u**exponent),
    )


def early_stopping(T: float, delta: float, steps: int) -> Grid:
    """A third of the steps uniform from T down to 1, the others geometric from 1 down to `delta`.

    Made for the Ornstein-Uhlenbeck process, whose step sizes should not exceed a fixed fraction of min(1, t).
    Source: Chen, Lee & Lu (2022), arXiv 2211.01916.
    """
    check.integer("steps", steps, 3)
    check.real("T", T, 1.0, open_low=True)
    check.real("delta", delta, 0.0, 1.0, open_low=True, open_high=True)
    coarse = steps // 3
    fine = steps - coarse
    far = [T + (1.0 - T) * i / coarse for i in range(coarse)]
    return (*far, *(delta ** (i / fine) for i in range(fine)), delta)


KINDS: dict[str, Callable[[Schedule, int], Grid]] = {
    "uniform": uniform,
    "quadratic": quadratic,
    "logsnr": logsnr,
    "karras": karras,
}


def make(schedule: Schedule, steps: int, kind: str = "logsnr") -> Grid:
    """The `steps + 1` times of a grid of this kind, strictly decreasing, from exactly `T` to exactly `t_min`.

    Args:
        kind: `uniform` (in t), `quadratic` (in sqrt t), `logsnr` (in lam) or `karras`.
    """
    check.one_of("grid", kind, tuple(KINDS))
    return KINDS[kind](schedule, steps)


def checked(schedule: Schedule, times: Sequence[float]) -> Grid:
    """`times` as a grid, if it is one: finite, not negative, strictly decreasing, no later than the schedule's T."""
    grid = tuple(float(t) for t in times)
    if len(grid) < 2:
        raise InputError(f"grid must hold at least two times (one step), got {list(grid)}")
    for i, t in enumerate(grid):
        if not math.isfinite(t) or t < 0 or t > schedule.T:
            raise InputError(f"grid[{i}] must lie in [0, T={schedule.T:g}], got {t!r}")
        if i > 0 and t >= grid[i - 1]:
            raise InputError(
                f"grid must decrease strictly from noise (large t) to data; got grid[{i - 1}]={grid[i - 1]!r} and "
                f"grid[{i}]={t!r}"
            )
    return grid


def _between(
    schedule: Schedule, steps: int, forward: Callable[[Tensor], Tensor], backward: Callable[[Tensor], Tensor]
) -> Grid:
    """Uniform in `forward(t)`."""
    check.integer("steps", steps, 1)
    ends = forward(torch.tensor([schedule.T, schedule.t_min], dtype=torch.float64))
    if not bool(ends.isfinite().all()):
        raise InputError(
            f"this grid is not finite on [t_min={schedule.t_min:g}, T={schedule.T:g}]: alpha or sigma vanishes at an "
            "end; move the end inside (t_min above 0, T below 1) or use the uniform grid"
        )
    inner = backward(ends[0] + (ends[1] - ends[0]) * torch.arange(1, steps, dtype=torch.float64) / steps)
    return checked(schedule, (schedule.T, *inner.tolist(), schedule.t_min))
