"""DualFast: corrects each noise prediction by the difference to one from an earlier, noisier time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Real
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises, Sampling
from hasten.diffusion.base import Sampler, SamplerState, Step, combine, planned, sample, sampler
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.dpm_solver import DPMSolver
from hasten.diffusion.samplers.rows import rows_of
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

CARD = Card(
    name="dualfast",
    family="diffusion",
    title="DualFast: Dual-Speedup Framework for Fast Sampling of Diffusion Models",
    authors="Yu et al.",
    year=2025,
    arxiv="2506.13058",
    paper_id=160,
    summary="Pushes each noise prediction away from one kept from the beginning of the chain, less and less.",
    cost="No evaluation more than its base solver, one stored output.",
    when="At 5 to 10 evaluations, around the sampler that is in use already.",
    kinds=("sample",),
    needs=("few steps",),
    search_space={"c0": Real(0.05, 1.0)},
    use="solver = hasten.diffusion.DualFast({hyper})\n"
    "samples = hasten.diffusion.sample(denoiser, (16, 2), sampler=solver, steps=6)",
)


@dataclass
class DualFastState(SamplerState):
    """A chain of samples under way.

    Attributes:
        reference: the kept noise prediction.
    """

    reference: Tensor | None = None


@sampler(CARD)
@dataclass(frozen=True)
class DualFast(Sampler):
    """A solver that uses `eps + sign c (eps - eps_ref)` as noise prediction at the beginning of each step.

    `c` falls linearly in t from `c0` at the grid's first time to 0 at its last. Solvers of higher order replace the
    prediction in their first-order term only; differences of predictions stay as they are. The correction does not
    vanish with the length of the step, so that it pays with few steps only.

    Args:
        base: the solver: `DDIM()`, `DEIS()` or a `DPMSolver`. Its own grid is not used.
        c0: strength of the correction at the beginning, in [0, 1]; 0 is the base solver.
        ref: `first` keeps the chain's first prediction, `prev` that of the step before.
        sign: 1 moves away from the kept prediction, -1 towards it.
        decay: `linear`, or `constant`, which keeps c at c0.
        grid, steps: see `Sampler`.

    Cost: that of `base` and one stored output. Source: Yu et al. (2025), arXiv 2506.13058.
    """

    base: Sampler = field(default_factory=DDIM)
    c0: float = 0.5
    ref: str = "first"
    sign: int = 1
    decay: str = "linear"
    grid: str | Sequence[float] = field(default="quadratic", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        rows_of(self.base)
        check.real("c0", self.c0, 0.0, 1.0)
        check.one_of("ref", self.ref, ("first", "prev"))
        check.one_of("sign", self.sign, (1, -1))
        check.one_of("decay", self.decay, ("linear", "constant"))

    @property
    def evaluations(self) -> int:
        return self.base.evaluations

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        length = times[0] - times[-1]
        fall = [(t - times[-1]) / length if self.decay == "linear" else 1.0 for t in times]
        rows = rows_of(self.base).plan(schedule, times)
        levels = ((schedule.alpha(t), schedule.sigma(t)) for t in times)
        return [(row, self.sign * self.c0 * c, *level) for row, c, level in zip(rows, fall, levels)]

    def init(self, problem: Sampling, generator: torch.Generator) -> DualFastState:
        return DualFastState(problem.noise, planned(self, problem.schedule, problem.horizon), generator)

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        rows, c, alpha, sigma = state.plan[state.index]
        base, x = rows_of(self.base), state.x
        u, change = x, None
        for t, scale, weights in rows:
            output = base.output(denoiser, u, t)
            state.outputs.insert(0, output)
            if change is None:
                change = self._change(state, x, output, c, alpha, sigma)
            u = combine(scale, x, weights, state.outputs).add_(change, alpha=sum(weights))
        return u

    def _change(self, state: Any, x: Tensor, output: Tensor, c: float, alpha: float, sigma: float) -> Tensor:
        """What the correction adds to the output at the beginning of the step, in that output's own units."""
        data = getattr(self.base, "predict", "eps") == "x0"
        eps = (x - alpha * output) / sigma if data else output
        reference = eps if state.reference is None else state.reference
        if state.reference is None or self.ref == "prev":
            state.reference = eps
        return (eps - reference) * (-c * sigma / alpha if data else c)


@dataclass(frozen=True)
class ErrorSplit:
    """Mean square errors per sample at every time of a sampler's grid, against the exact solution.

    Attributes:
        times: the times after each step.
        discretisation: of the sampler's own steps with the exact denoiser.
        approximation: of the network with steps so short that only the network errs.
        total: of the sampler's own steps with the network.
    """

    times: tuple[float, ...]
    discretisation: tuple[float, ...]
    approximation: tuple[float, ...]
    total: tuple[float, ...]


def error_split(
    sampler: Sampler, denoiser: Denoiser, exact: Denoiser, noise: Tensor, steps: int, reference_steps: int = 1000
) -> ErrorSplit:
    """Which part of a sampler's error is its own and which the network's.

    Args:
        sampler: the sampler, one with fixed steps.
        denoiser: the network under test.
        exact: the denoiser that it approximates, e.g. of a mixture, on the same schedule.
        noise: start noise at T.
        steps: steps of the sampler.
        reference_steps: steps that count as exact, of DPM-Solver-3, at least.
    """
    check.integer("steps", steps, 1)
    check.integer("reference_steps", reference_steps, steps)
    schedule = denoiser.schedule
    if exact.schedule != schedule:
        raise InputError(f"exact must have the denoiser's schedule {schedule}, got {exact.schedule}")
    times = replace(sampler, steps=steps).times(schedule, None)
    substeps = -(-reference_steps // (len(times) - 1))
    lams = torch.tensor([schedule.lam(t) for t in times], dtype=torch.float64)
    fine: list[float] = []
    for t, start, end in zip(times, lams, lams[1:]):
        inner = start + (end - start) * torch.arange(1, substeps, dtype=torch.float64) / substeps
        fine += [t, *schedule.t_of_lam(inner).tolist()]
    short = DPMSolver(3, grid=(*fine, times[-1]))

    def path(made: Sampler, model: Denoiser, every: int) -> list[Tensor]:
        states: list[Tensor] = []
        sample(model, noise=noise, sampler=made, callback=lambda state: states.append(state.x))
        return states[every - 1 :: every]

    coarse = replace(sampler, grid=times, steps=None)
    truth = path(short, exact, substeps)

    def errors(states: list[Tensor]) -> tuple[float, ...]:
        return tuple(float((x - y).flatten(1).square().sum(1).mean()) for x, y in zip(states, truth))

    return ErrorSplit(
        times=times[1:],
        discretisation=errors(path(coarse, exact, 1)),
        approximation=errors(path(short, denoiser, substeps)),
        total=errors(path(coarse, denoiser, 1)),
    )
