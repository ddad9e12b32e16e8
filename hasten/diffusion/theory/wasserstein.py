"""Exact Wasserstein errors of probability-flow samplers on Gaussian data, split by where they come from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.registry import register
from hasten.numerics import time_grid
from hasten.numerics.noise import Schedule

CARD = Card(
    name="pf-ode-w2",
    family="diffusion",
    title="Convergence Analysis for General Probability Flow ODEs of Diffusion Models in Wasserstein Distances",
    authors="Gao & Zhu",
    year=2024,
    arxiv="2401.17958",
    paper_id=72,
    summary="Predicts the Wasserstein error of an ODE sampler on Gaussian data: start, steps and score, apart.",
    cost="Some operations per dimension and step; no network.",
    when="To choose schedule, T and number of steps for a dimension and an accuracy before anything is trained.",
    kinds=("sample",),
    needs=("law",),
    use=(
        "spectrum = torch.linspace(0.2, 2.0, 16)\n"
        "errors = hasten.diffusion.gaussian_pf_ode_w2(spectrum, hasten.diffusion.VPLinear(), 50)\n"
        "print(errors.total, errors.start, errors.steps)"
    ),
)


@dataclass(frozen=True)
class W2Errors:
    """2-Wasserstein distances of a sampler's law on Gaussian data.

    Attributes:
        total: from the samples' law to that of the data at the end of the grid.
        start: the same with infinitely many steps: what the wrong start alone costs.
        steps: between the samples' laws of finitely and infinitely many steps: what the steps alone cost.
        score: bound on what the given error of the score adds.
    """

    total: float
    start: float
    steps: float
    score: float = 0.0


@register(CARD)
def gaussian_pf_ode_w2(
    spectrum: Any,
    schedule: Schedule,
    grid: int | Sequence[float] = 100,
    scheme: str = "ei",
    mean: Any = 0.0,
) -> W2Errors:
    """Exact 2-Wasserstein errors of the probability-flow ODE for data `N(mean, diag(spectrum))` and the exact score.

    Every scheme is then linear and diagonal: a step multiplies the deviation from the path of the mean by a gain. The
    start is `N(0, sigma_T^2)` where the noisy data have `N(alpha_T mean, alpha_T^2 v + sigma_T^2)`.

    Args:
        spectrum: variances v, shape (d,).
        schedule: noise schedule.
        grid: the times, decreasing, or a number of steps uniform in t.
        scheme: `ei`, the exponential integrator (DDIM), or `euler`, Euler's method in t.
        mean: of the data, broadcast to (d,).
    """
    check.one_of("scheme", scheme, ("ei", "euler"))
    v = _spectrum(spectrum)
    times = time_grid.uniform(schedule, grid) if isinstance(grid, int) else time_grid.checked(schedule, grid)
    step = _exponential if scheme == "ei" else _euler
    gain = torch.ones_like(v)
    for s, t in pairwise(times):
        gain = gain * step(schedule, v, s, t)
    first, last = times[0], times[-1]
    exact = _total(schedule, v, last).sqrt()
    flow = exact / _total(schedule, v, first).sqrt()
    offset = schedule.alpha(first) * torch.as_tensor(mean, dtype=torch.float64).expand_as(v)
    start = schedule.sigma(first)

    def distance(deviation: Tensor, shift: Tensor) -> float:
        return float((deviation.square().sum() + shift.square().sum()).sqrt())

    return W2Errors(
        total=distance(gain.abs() * start - exact, gain * offset),
        start=distance(flow * start - exact, flow * offset),
        steps=distance((gain.abs() - flow) * start, (gain - flow) * offset),
    )


def pf_ode_budget(
    schedule: Schedule,
    d: int,
    eps: float,
    *,
    low: float = 0.2,
    high: float = 2.0,
    score_err: float = 0.0,
    scheme: str = "ei",
    most: int = 1 << 20,
) -> tuple[int, W2Errors]:
    """The number of steps, uniform in t, that brings the error of the steps down to `eps`, and all errors there.

    Data are a d-dimensional Gaussian with variances spread evenly over [low, high].

    Args:
        schedule, d: noise schedule and dimension.
        eps: distance that the steps may cost.
        low, high: smallest and largest variance.
        score_err: root mean square error of the score at every time, for the part `score`: the error that the exact
            flow carries to the end, `int (g^2/2) score_err gain dt` with the largest gain of any direction.
        scheme: as for `gaussian_pf_ode_w2`.
        most: number of steps to give up at.
    """
    check.integer("d", d, 1)
    check.positive("eps", eps)
    check.positive("low", low)
    check.real("high", high, low)
    check.nonnegative("score_err", score_err)
    v = low + (high - low) * (torch.arange(d, dtype=torch.float64) + 0.5) / d

    def errors(count: int) -> W2Errors:
        return gaussian_pf_ode_w2(v, schedule, count, scheme)

    upper = 1
    while errors(upper).steps > eps:
        upper *= 2
        if upper > most:
            raise InputError(f"{most} steps do not reach eps={eps:g} in {d} dimensions; raise eps or most")
    lower = upper // 2
    while upper - lower > 1:
        middle = (lower + upper) // 2
        lower, upper = (lower, middle) if errors(middle).steps <= eps else (middle, upper)
    found = errors(upper)
    return upper, W2Errors(found.total, found.start, found.steps, score_err * _carried(schedule, v))


def _carried(schedule: Schedule, v: Tensor, nodes: int = 4000) -> float:
    """What a score error of one adds at the end, at most: `int (g^2/2) gain(t -> t_min) dt`."""
    t = torch.linspace(schedule.t_min, schedule.T, nodes + 1, dtype=torch.float64)
    middle = 0.5 * (t[1:] + t[:-1])
    spread = _total(schedule, v, middle[:, None]).sqrt()
    gain = (_total(schedule, v, schedule.t_min).sqrt() / spread).amax(1)
    return float((0.5 * schedule.diffusion2(middle) * gain).sum()) * (schedule.T - schedule.t_min) / nodes


def _total(schedule: Schedule, v: Tensor, t: Any) -> Tensor:
    """Variance of noisy data."""
    return schedule.alpha(t) ** 2 * v + schedule.sigma(t) ** 2


def _exponential(schedule: Schedule, v: Tensor, s: float, t: float) -> Tensor:
    """Gain of a DDIM step: `x_0` and `eps` frozen in their exact values at s."""
    signal = schedule.alpha(t) * schedule.alpha(s) * v
    return (signal + schedule.sigma(t) * schedule.sigma(s)) / _total(schedule, v, s)


def _euler(schedule: Schedule, v: Tensor, s: float, t: float) -> Tensor:
    """Gain of an Euler step in t along the velocity."""
    slope = schedule.dalpha(s) * schedule.alpha(s) * v + schedule.dsigma(s) * schedule.sigma(s)
    return 1.0 + (t - s) * slope / _total(schedule, v, s)


def _spectrum(spectrum: Any) -> Tensor:
    v = torch.as_tensor(spectrum, dtype=torch.float64)
    if v.ndim != 1 or len(v) == 0 or not bool((v > 0).all()) or not bool(v.isfinite().all()):
        raise InputError(f"spectrum must hold positive variances, shape (d,); got {np.asarray(v).tolist()}")
    return v
