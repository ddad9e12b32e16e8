"""Accelerated DDIM and DDPM: samplers on the chain of noise levels that need scores and nothing else."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import Sampler, Step, sampler
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid


def _card(name: str, summary: str, cost: str, when: str, needs: tuple[str, ...] = ()) -> Card:
    return Card(
        name=name,
        family="diffusion",
        title="Accelerating Convergence of Score-Based Diffusion Models, Provably",
        authors="Li, Huang, Efimov, Wei, Chi & Chen",
        year=2024,
        arxiv="2403.03852",
        paper_id=109,
        summary=summary,
        cost=cost,
        when=when,
        kinds=("sample",),
        needs=needs,
        search_space={"grid": Choice("logsnr", "quadratic", "uniform")},
        use=f'samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="{name}", nfe=96{{hyper}})',
    )


DETERMINISTIC = _card(
    "accelerated-ddim",
    "Corrects each step of the score form of DDIM by the score at a guess of the state one step back.",
    "Two evaluations per step (the first step one), nothing stored.",
    "With many steps, where a rate proved for any data is wanted.",
)
STOCHASTIC = _card(
    "accelerated-ddpm",
    "Adds half of a DDPM step's noise before the score is evaluated and half after it.",
    "One evaluation per step, two draws of noise.",
    "Where samples shall be random and many steps are affordable: the law converges an order faster than DDPM's.",
    needs=("metric of laws",),
)


class Level(NamedTuple):
    """A noise level t of the chain `Y = x/norm`, whose signal and noise have squares that sum to one.

    Attributes:
        t: time.
        norm: `sqrt(alpha^2 + sigma^2)`.
        noise: noise level of Y, `sqrt(1 - abar)`.
        kept: `a_t = abar_t/abar_{t-1}`, the share of the next cleaner level's signal that is left at this one.
        lost: `1 - a_t`, without cancellation.
    """

    t: float
    norm: float
    noise: float
    kept: float
    lost: float

    def score(self, denoiser: Denoises, y: Tensor) -> Tensor:
        """Gradient of the log density of Y at y."""
        return denoiser.eps(y * self.norm, self.t).mul(-1.0 / self.noise)


def chain(schedule: Schedule, times: Grid) -> list[Level]:
    """The levels at which steps begin, from noise to data.

    Any schedule is variance preserving once its states are divided by `sqrt(alpha^2 + sigma^2)`.
    """
    levels: list[Level] = []
    for t, cleaner in pairwise(times):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        if alpha < 1e-12:
            raise InputError(f"the grid begins at t={t:g} with alpha=0, where nothing is left; begin it at a smaller T")
        norm = math.hypot(alpha, sigma)
        log_kept = 2.0 * (math.log(alpha / norm) - math.log(_signal(schedule, cleaner)))
        levels.append(Level(t, norm, sigma / norm, math.exp(log_kept), -math.expm1(log_kept)))
    return levels


def _signal(schedule: Schedule, t: float) -> float:
    alpha = schedule.alpha(t)
    return alpha / math.hypot(alpha, schedule.sigma(t))


def _norms_after(schedule: Schedule, times: Grid) -> list[float]:
    return [math.hypot(schedule.alpha(t), schedule.sigma(t)) for t in times[1:]]


@sampler(DETERMINISTIC)
@dataclass(frozen=True)
class AcceleratedDDIM(Sampler):
    """Deterministic sampler of the second order on the chain `Y_T, ..., Y_0`, with `a = abar_t/abar_{t-1}`.

    Plain: `Y_{t-1} = (Y_t + (1 - a_t)/2 s_t(Y_t))/sqrt(a_t)`. Accelerated: with the guess of the state one step back
    `Y' = sqrt(a_{t+1}) (Y_t - (1 - a_{t+1})/2 s_t(Y_t))`, the bracket grows by
    `(1 - a_t)^2/(4 (1 - a_{t+1})) (s_t(Y_t) - sqrt(a_{t+1}) s_{t+1}(Y'))`. The first step is plain.

    Args:
        accelerated: False takes the plain step, of order 1 and one evaluation.
        grid, steps: see `Sampler`.

    Cost: two evaluations per step, nothing stored. Source: Li et al. (2024), arXiv 2403.03852.
    """

    accelerated: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("accelerated", self.accelerated, (True, False))

    @property
    def evaluations(self) -> int:
        return 2 if self.accelerated else 1

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        levels = chain(schedule, times)
        back = [None, *levels[:-1]] if self.accelerated else [None] * len(levels)
        return list(zip(levels, back, _norms_after(schedule, times)))

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        level, back, norm = state.plan[state.index]
        y = state.x / level.norm
        score = level.score(denoiser, y)
        moved = y + 0.5 * level.lost * score
        if back is not None:
            guess = math.sqrt(back.kept) * (y - 0.5 * back.lost * score)
            bend = score - math.sqrt(back.kept) * back.score(denoiser, guess)
            moved += level.lost**2 / (4.0 * back.lost) * bend
        return moved * (norm / math.sqrt(level.kept))


@sampler(STOCHASTIC)
@dataclass(frozen=True)
class AcceleratedDDPM(Sampler):
    """Stochastic sampler whose law converges at rate 1/T instead of 1/sqrt(T) in total variation.

    Accelerated: `Y+ = Y_t + sqrt((1 - a_t)/2) Z`, then
    `Y_{t-1} = (Y+ + (1 - a_t) s_t(Y+) + sqrt((1 - a_t)/2) Z')/sqrt(a_t)`, Z and Z' independent and standard normal.
    Plain (DDPM): all of the noise is added after the score.

    Args:
        accelerated: False takes the plain step.
        grid, steps: see `Sampler`.

    Cost: one evaluation per step. Source: Li et al. (2024), arXiv 2403.03852.
    """

    accelerated: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("accelerated", self.accelerated, (True, False))

    def noise(self, level: Level) -> tuple[float, float]:
        """Standard deviations of the noise before and after the score."""
        before = 0.5 * level.lost if self.accelerated else 0.0
        return math.sqrt(before), math.sqrt(level.lost - before)

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        levels = chain(schedule, times)
        return [(level, *self.noise(level), norm) for level, norm in zip(levels, _norms_after(schedule, times))]

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        level, before, after, norm = state.plan[state.index]
        y = state.x / level.norm
        if before > 0.0:
            y.add_(standard_normal(y, state.generator), alpha=before)
        moved = y + level.lost * level.score(denoiser, y)
        return moved.add_(standard_normal(y, state.generator), alpha=after) * (norm / math.sqrt(level.kept))

    def variance(self, schedule: Schedule, times: Grid, data: float) -> float:
        """Variance of the samples of Gaussian data with variance `data`, on which the sampler is linear: exact.

        The start is the one that users get, of standard deviation `sigma(T)`.
        """
        check.positive("data", data)
        variance = schedule.sigma(times[0]) ** 2
        for level, before, after, norm in self.plan(schedule, times):
            signal2 = 1.0 - level.noise**2
            pull = 1.0 - level.lost / (signal2 * data + level.noise**2)
            now = variance / level.norm**2 + before**2
            variance = (pull**2 * now + after**2) * norm**2 / level.kept
        return variance
