"""D-ODE solvers: one fitted number per step brings a solver of few steps close to itself with many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises, Sampling
from hasten.diffusion.base import Sampler, SamplerState, Step, combine, planned, sampler, solving
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.rows import rows_of
from hasten.numerics import time_grid
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

CARD = Card(
    name="d-ode",
    family="diffusion",
    title="Distilling ODE Solvers of Diffusion Models into Smaller Steps",
    authors="Kim, Tang & Yu",
    year=2023,
    arxiv="2309.16421",
    paper_id=327,
    summary="Moves each prediction along its change since the last step, by a factor fitted to the solver's own "
    "result with many steps.",
    cost="One evaluation per step, two stored outputs; once per grid a fit on one batch.",
    when="When many samples are drawn from one model with the same few steps, so that a fit of seconds pays.",
    kinds=("sample",),
    needs=("fit",),
    search_space={"grid": Choice("quadratic", "uniform", "logsnr", "karras")},
    use="solver = hasten.diffusion.DODE({hyper}).fit(denoiser, torch.randn(100, 2), steps=8)\n"
    "samples = hasten.diffusion.sample(denoiser, (16, 2), sampler=solver)",
)


@dataclass
class DODEState(SamplerState):
    """A chain of samples under way.

    Attributes:
        raw: the network's own output in the last step.
    """

    raw: Tensor | None = None


@sampler(CARD)
@dataclass(frozen=True)
class DODE(Sampler):
    """A solver that uses `D_i = d_i + Lambda_i (d_i - d_{i-1})` in place of the network's output `d_i`.

    `Lambda_0 = 0`. The others are fitted step by step with the network frozen: from the student's state the base
    solver goes to the end of the step in `teacher_substeps` steps, to y. The student's step is affine in Lambda_i,
    `b_i + Lambda_i g_i`, so `Lambda_i = sum <y - b_i, g_i> / sum <g_i, g_i>` over the batch. The student then takes
    its step with it.

    Args:
        base: the solver, with one evaluation per step: `DDIM()`, `DPMSolver(variant="multistep")`, `DEIS()`. Its own
            grid is not used. d is the prediction that it asks for.
        lambdas: one number per step, as `fit` finds them; None leaves the base solver as it is.
        grid, steps: see `Sampler`.

    Cost: that of `base` and one stored output. Source: Kim, Tang & Yu (2023), arXiv 2309.16421.
    """

    base: Sampler = field(default_factory=DDIM)
    lambdas: Sequence[float] | None = None
    grid: str | Sequence[float] = field(default="quadratic", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        rows_of(self.base)
        if self.base.evaluations != 1:
            raise InputError(
                f"base must evaluate once per step, {self.base.card.name} evaluates {self.base.evaluations} times; "
                'take DDIM(), DEIS() or DPMSolver(variant="multistep")'
            )
        if self.lambdas is not None:
            object.__setattr__(self, "lambdas", tuple(float(check.real("lambdas", value)) for value in self.lambdas))

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        steps = rows_of(self.base).plan(schedule, times)
        lambdas = (0.0,) * len(steps) if self.lambdas is None else self.lambdas
        if len(lambdas) != len(steps):
            raise InputError(f"lambdas are fitted for {len(lambdas)} steps, the grid has {len(steps)}; fit again")
        return list(zip((row for (row,) in steps), lambdas))

    def init(self, problem: Sampling, generator: torch.Generator) -> DODEState:
        return DODEState(problem.noise, planned(self, problem.schedule, problem.horizon), generator)

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        row, factor = state.plan[state.index]
        output = rows_of(self.base).output(denoiser, state.x, row.t)
        moved = output if state.raw is None or factor == 0.0 else output + factor * (output - state.raw)
        state.raw = output
        state.outputs.insert(0, moved)
        return combine(row.scale, state.x, row.weights, state.outputs)

    def fit(self, denoiser: Denoises, noise: Tensor, teacher_substeps: int = 10, steps: int | None = None) -> DODE:
        """The same solver with lambdas fitted to this model, on this batch of start noise.

        Args:
            denoiser: the trained model that samples will be drawn from.
            noise: start noise at T, about 100 samples; the fit generalises to others.
            teacher_substeps: steps of the base solver per step.
            steps: steps to fit; the sampler's own if not given.

        Cost: `steps * (teacher_substeps + 1)` evaluations of the batch.
        """
        check.integer("teacher_substeps", teacher_substeps, 1)
        fine = self._fine(denoiser.schedule, teacher_substeps, self.steps if steps is None else steps)
        base = rows_of(self.base)
        x, raw, outputs, lambdas = noise, None, [], []
        plan = base.plan(denoiser.schedule, fine[::teacher_substeps])
        for i, (row,) in enumerate(plan):
            with solving(lambda i=i: f"fit of step {i + 1} of {len(plan)}"):
                output = base.output(denoiser, x, row.t)
                begin = i * teacher_substeps
                goal = _solve(base, denoiser, x, fine[begin : begin + teacher_substeps + 1])
                plain = combine(row.scale, x, row.weights, [output, *outputs])
                change = torch.zeros_like(x) if raw is None else output - raw
                slope = row.weights[0] * change
                lambdas.append(_ratio(goal - plain, slope))
                x = plain + lambdas[-1] * slope
                outputs = [output + lambdas[-1] * change, *outputs][: len(row.weights)]
                raw = output
        fitted = replace(self, lambdas=tuple(lambdas), steps=len(plan))
        object.__setattr__(fitted, "card", self.card)
        return fitted

    def _fine(self, schedule: Schedule, substeps: int, steps: int | None) -> Grid:
        """The grid with every step divided: by its own rule, or evenly in lam between given times."""
        if isinstance(self.grid, str):
            count = replace(self, steps=steps, lambdas=None).step_count(None)
            return time_grid.make(schedule, count * substeps, self.grid)
        inner: list[float] = [self.grid[0]]
        for s, t in pairwise(self.times(schedule, None)):
            lams = torch.linspace(schedule.lam(s), schedule.lam(t), substeps + 1, dtype=torch.float64)
            inner += [*schedule.t_of_lam(lams)[1:-1].tolist(), t]
        return time_grid.checked(schedule, inner)


def _solve(base: Sampler, denoiser: Denoises, x: Tensor, times: Grid) -> Tensor:
    """The base solver from x along these times."""
    state = SamplerState(x, base.plan(denoiser.schedule, times), torch.default_generator)
    for index in range(len(state.plan)):
        state.index = index
        state.x = base.advance(denoiser, state)
    return state.x


def _ratio(wanted: Tensor, slope: Tensor) -> float:
    """The factor of `slope` that is nearest to `wanted` in least squares; 0 where the slope vanishes."""
    size = float(slope.double().square().sum())
    return float((wanted.double() * slope.double()).sum()) / size if size > 0.0 else 0.0
