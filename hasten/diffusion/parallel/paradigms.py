"""ParaDiGMS: many steps of a sampler at once, by Picard iteration on a sliding window of the trajectory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises, Sampling
from hasten.diffusion.base import Sampler, planned, sampler, solving
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.diffusion.samplers.exponential import Span, first_order, second_order
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

CARD = Card(
    name="paradigms",
    family="diffusion",
    title="Parallel Sampling of Diffusion Models",
    authors="Shih, Belkhale, Ermon, Sadigh & Anari",
    year=2023,
    arxiv="2305.16317",
    paper_id=138,
    summary="Evaluates a window of time points in one batch and corrects the trajectory until it stands.",
    cost="Two to four times the base sampler's evaluations, in a fraction of its rounds; `window` states.",
    when="When one small batch leaves the accelerator idle and the time of a single sample counts.",
    kinds=("sample",),
    search_space={"window": Choice(8, 16, 32), "tol": Choice(0.01, 0.03, 0.1)},
    use='samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="paradigms", steps=50{hyper})',
)


class Stage(NamedTuple):
    """One evaluation of every step of the grid: its times, and the coefficients of the state that follows."""

    t: Tensor
    scale: Tensor
    weights: tuple[Tensor, ...]


@dataclass
class WindowState:
    """The part of the trajectory that is being computed.

    Attributes:
        slots: states at the grid points `begin, begin + 1, ...`; the first one is final.
        begin: grid points that are final, less one.
        stages: coefficients of the base sampler, per stage a tensor over the grid.
        variance: posterior variance of each step, the scale of its error.
        noise: fresh noise of each step, drawn in advance; None for a deterministic base.
        left: evaluations that may still be spent, None for any number.
        index: rounds done.
    """

    slots: Tensor
    stages: tuple[Stage, ...]
    variance: Tensor
    noise: Tensor | None
    left: int | None
    begin: int = 0
    index: int = 0

    @property
    def x(self) -> Tensor:
        """The last state that is final."""
        return self.slots[0]


@sampler(CARD)
@dataclass(frozen=True)
class ParaDiGMS(Sampler):
    """Parallel sampling by Picard iteration.

    A round evaluates the base sampler's steps at all points b..b+p-1 of the window in one batch and sets
    `X[j+1] = X[b] + sum_{i=b..j} (step(X[i], t_i) - X[i])`. The window then moves to the first point whose change
    `|X_new - X_old|^2/(dim v_j)` exceeded `tol^2` for some sample (v_j the posterior variance of step j); the points
    that come in start from the last state known. As `tol` goes to 0 the result is the base sampler's own, in at most
    as many rounds as it has steps.

    Args:
        base: `ddim`, `dpm-solver-2` (two evaluations per point) or `ddpm` (ancestral; its noise is drawn in advance).
        window: points evaluated at once.
        tol: tolerance, in units of the noise that ancestral sampling would add in the step.
        max_iter: rounds after which whole windows are accepted; None for no limit.
        grid, steps: see `Sampler`. Where evaluations are limited, half of them make steps and the window shrinks
            towards the end so that the rest suffices.

    Cost: two to four times the base sampler's evaluations, in a fraction of as many rounds; `window` states.
    Source: Shih et al. (2023), arXiv 2305.16317.
    """

    base: str = "ddim"
    window: int = 20
    tol: float = 0.1
    max_iter: int | None = None
    grid: str | Sequence[float] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("base", self.base, ("ddim", "dpm-solver-2", "ddpm"))
        check.integer("window", self.window, 1)
        check.positive("tol", self.tol)
        if self.max_iter is not None:
            check.integer("max_iter", self.max_iter, 1)

    @property
    def evaluations(self) -> int:
        return 2 if self.base == "dpm-solver-2" else 1

    def step_count(self, nfe: int | None) -> int:
        if self.steps is not None:
            return self.steps
        return max(1, super().step_count(nfe) // 2)

    def plan(self, schedule: Schedule, times: Grid) -> list[tuple[list[tuple[float, ...]], float, float]]:
        """Rows, posterior variance and standard deviation of fresh noise of every step."""
        if schedule.sigma(times[-1]) == 0.0 or schedule.alpha(times[0]) < 1e-12:
            raise InputError(
                f"the grid runs from t={times[0]:g} to {times[-1]:g}, where alpha or sigma is 0; move its ends"
            )
        steps = []
        for s, t in pairwise(times):
            span = Span(schedule, "eps", s, t)
            rows = [tuple(row) for row in (second_order if self.base == "dpm-solver-2" else first_order)(span)]
            variance = -math.expm1(-2.0 * span.h) * schedule.sigma(t) ** 2
            fresh = 0.0
            if self.base == "ddpm":
                fresh = math.sqrt(variance)
                kept = math.sqrt(schedule.sigma(t) ** 2 - variance)
                rows = [(s, span.scale, (kept - span.scale * schedule.sigma(s),))]
            steps.append((rows, variance, fresh))
        return steps

    def init(self, problem: Sampling, generator: torch.Generator) -> WindowState:
        x = problem.noise
        state = self.open(x, problem.schedule, problem.horizon)
        if self.base == "ddpm":
            fresh = [step[2] for step in planned(self, problem.schedule, problem.horizon)]
            state.noise = torch.stack([std * standard_normal(x, generator) for std in fresh])
        state.left = problem.horizon if self.steps is None and isinstance(self.grid, str) else None
        return state

    def open(self, x: Tensor, schedule: Schedule, nfe: int | None) -> WindowState:
        """The state before the first round, from start noise x, without the noise of later steps."""
        rows, variance, _ = zip(*planned(self, schedule, nfe))
        stages = tuple(
            Stage(
                torch.tensor([row[0] for row in stage], dtype=torch.float64).to(x),
                self._column([row[1] for row in stage], x),
                tuple(self._column(weights, x) for weights in zip(*(row[2] for row in stage))),
            )
            for stage in zip(*rows)
        )
        slots = x.expand(min(self.window, len(rows)) + 1, *x.shape)
        return WindowState(slots, stages, torch.tensor(variance, dtype=torch.float64).to(x), None, None)

    def step(self, problem: Sampling, state: WindowState) -> WindowState:
        return self.round(problem.denoiser, state)

    def round(self, denoiser: Denoises, state: WindowState) -> WindowState:
        """One Picard iteration on the window, which then moves to the first point that has not settled."""
        steps = len(state.variance)
        begin, open_slots = state.begin, len(state.slots) - 1
        if state.left is not None:
            open_slots = min(open_slots, state.left // self.evaluations - (steps - begin - 1))
            state.left -= open_slots * self.evaluations
        window = slice(begin, begin + open_slots)
        old = state.slots[1 : open_slots + 1]
        state.index += 1
        with solving(lambda: f"round {state.index}, steps {begin + 1} to {begin + open_slots}"):
            new = self.picard(denoiser, state.slots[:open_slots], state.stages, window, state.noise)
        change = (new - old).flatten(2).square().mean(2).amax(1) / state.variance[window]
        moving = (change > self.tol**2).nonzero()
        settled = len(moving) == 0 or (self.max_iter is not None and state.index >= self.max_iter)
        stride = open_slots if settled else min(int(moving[0]) + 1, open_slots)
        state.begin += stride
        kept = new[stride - 1 :]
        missing = min(self.window, steps - state.begin) + 1 - len(kept)
        state.slots = torch.cat((kept, kept[-1:].expand(missing, *kept.shape[1:]))) if missing > 0 else kept
        return state

    def done(self, state: WindowState) -> bool:
        return state.begin >= len(state.variance)

    def picard(
        self, denoiser: Denoises, x: Tensor, stages: Sequence[Stage], window: slice, noise: Tensor | None = None
    ) -> Tensor:
        """One Picard iteration: states after the window's steps, from guesses x of the states before them."""
        drift = self.base_steps(denoiser, x, stages, window, noise) - x
        return x[0] + drift.cumsum(0)

    def base_steps(
        self, denoiser: Denoises, x: Tensor, stages: Sequence[Stage], window: slice, noise: Tensor | None = None
    ) -> Tensor:
        """The base sampler's step from every point of the window, in one batched call per stage."""
        outputs: list[Tensor] = []
        u = x
        for t, scale, weights in stages:
            times = t[window].repeat_interleave(x.shape[1])
            outputs.insert(0, denoiser.eps(u.flatten(0, 1), times).view_as(x))
            u = scale[window] * x
            for weight, output in zip(weights, outputs):
                u = u + weight[window] * output
        return u if noise is None else u + noise[window]

    @staticmethod
    def _column(values: Sequence[float], x: Tensor) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).to(x).reshape(-1, *(1,) * x.ndim)
