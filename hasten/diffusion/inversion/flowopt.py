"""FlowOpt: the noise, or an edit, by steps along the mismatch of whole generated samples, without any gradient."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises, Sampling
from hasten.diffusion.base import Sampler, SamplerState, Step, planned, sampler, solving
from hasten.diffusion.inversion.base import Inverter, inversion
from hasten.diffusion.inversion.ddim import DDIMInversion
from hasten.diffusion.samplers.ddim import DDIM, standard_normal
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

STARTS = ("uniinv", "ddim")

UNI_INV = Card(
    name="uni-inv",
    family="diffusion",
    title="UniEdit-Flow: Unleashing Inversion and Editing in the Era of Flow Models",
    authors="Jiao, Huang, Wang & Liao",
    year=2025,
    arxiv="2504.13109",
    summary="Walks the steps backwards with the velocity seen at a predicted state of the noisier end.",
    cost="One evaluation per step and one at the start, one stored output.",
    when="As a start for exact inversions, and where DDIM inversion is too rough.",
    kinds=("invert",),
    search_space={"grid": Choice("uniform", "quadratic")},
    use='noise = hasten.diffusion.invert(denoiser, torch.randn(16, 2), method="uni-inv", steps=20{hyper})',
)
CARD = Card(
    name="flowopt",
    family="diffusion",
    title="FlowOpt: Fast Optimization Through Whole Flow Processes for Training-Free Editing",
    authors="Ronai, Kulikov & Michaeli",
    year=2025,
    arxiv="2510.22010",
    paper_id=83,
    summary="Generates from the noise, and moves the noise against the difference of the outcome from the data.",
    cost="One whole generation per iteration; no gradients, no stored graph.",
    when="For inversion and edits with large models, where backpropagation through the sampler does not fit.",
    kinds=("invert",),
    search_space={"eta": LogReal(0.002, 0.1), "grid": Choice("uniform", "quadratic")},
    use='noise = hasten.diffusion.invert(denoiser, torch.randn(16, 2), method="flowopt", steps=15{hyper})',
)


@sampler(UNI_INV)
@dataclass(frozen=True)
class UniInv(Inverter):
    """Inversion with a predicted end point: `x' = x + v dt`, `v <- velocity(x', t)`, `x <- x + v dt`, t noisier.

    The velocity that predicts the end point is the one of the step before, so that each step costs one evaluation, and
    the first two. Where paths are not straight, `v dt` is `(alpha_t - alpha_s) x_0 + (sigma_t - sigma_s) eps` with both
    from one evaluation: the change that DDIM makes.

    Args:
        grid, steps: see `Sampler`; the grid is walked from t_min to T.

    Cost: one evaluation per step, and one. Source: Jiao et al. (2025), arXiv 2504.13109.
    """

    grid: str | Sequence[float] = field(default="uniform", kw_only=True)

    def step_count(self, nfe: int | None) -> int:
        return max(1, super().step_count(None if nfe is None else max(1, nfe - 1)))

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        """Times and the changes of the two levels."""
        levels = (schedule.alpha, schedule.sigma)
        return [(s, t, *(level(t) - level(s) for level in levels)) for s, t in pairwise(times[::-1])]

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        s, t, signal, noise = state.plan[state.index]
        x0, eps = state.outputs or denoiser.split(state.x, s)
        predicted = (x0 * signal).add_(eps, alpha=noise).add_(state.x)
        x0, eps = state.outputs[:] = denoiser.split(predicted, t)
        return (x0 * signal).add_(eps, alpha=noise).add_(state.x)


class WholeState(SamplerState):
    """The noise under way; `index` counts iterations, the first of which makes the start."""

    goal: Tensor
    method: FlowOpt


@sampler(CARD)
@dataclass(frozen=True)
class FlowOpt(Inverter):
    """Zero-order optimisation through the whole generation.

    With `f(z)` the sample generated from noise z, iterate `z <- z - eta (f(z) - y)`. Under the condition of the data y
    this inverts; under another condition it leads from the plain edit back towards the data, so that stopping early
    chooses how much is kept. It converges where eta is below
    `2 inf <f(z) - f(z*), z - z*>/|f(z) - f(z*)|^2`, which `estimate_eta` probes.

    Args:
        sampler: what generates; None takes DDIM on the same grid, which is Euler's rule on a flow. It must draw no
            noise of its own.
        eta: step size; published are 0.0025 for FLUX and 0.01 for Stable Diffusion 3, small problems bear 0.05.
        iters: iterations; where evaluations are limited, at most as many as they pay for.
        init_by: start: `uniinv` or `ddim` inversion.
        grid, steps: see `Sampler`; steps of each generation.

    Cost: `steps` evaluations per iteration, and about as many for the start; no gradients.
    Source: Ronai, Kulikov & Michaeli (2025), arXiv 2510.22010.

    Example:
        >>> flowopt = FlowOpt(eta=0.0025, iters=8, steps=15)
        >>> edited = flowopt.edit(denoiser.given(source), denoiser.given(target), images, skip=2)
    """

    sampler: Sampler | None = None
    eta: float = 0.0025
    iters: int = 30
    init_by: str = "uniinv"
    grid: str | Sequence[float] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive("eta", self.eta)
        check.integer("iters", self.iters, 1)
        check.one_of("init_by", self.init_by, STARTS)
        if self.sampler is not None and (not isinstance(self.sampler, Sampler) or isinstance(self.sampler, Inverter)):
            raise InputError(f"sampler must be a sampler, e.g. DDIM(), got {self.sampler!r}")

    @property
    def solver(self) -> Sampler:
        """What generates, on this grid."""
        base = DDIM() if self.sampler is None else self.sampler
        made = replace(base, grid=self.grid, steps=self.steps)
        object.__setattr__(made, "card", base.card)
        return made

    @property
    def start(self) -> Inverter:
        """The inversion that makes the start."""
        return (UniInv if self.init_by == "uniinv" else DDIMInversion)(grid=self.grid, steps=self.steps)

    def init(self, problem: Any, generator: torch.Generator) -> WholeState:
        problem = inversion(self, problem)
        method, iters, nfe = self, self.iters, problem.horizon
        cost = self.solver.evaluations
        if nfe is not None and self.steps is None and isinstance(self.grid, str):
            if nfe < 2 + cost:
                raise InputError(f"flowopt needs at least {2 + cost} evaluations, but only {nfe} may be used")
            method = replace(self, steps=max(1, math.isqrt(nfe - 1) // (1 + cost)))
            assert method.steps is not None
            iters = min(iters, (nfe - 1 - method.steps) // (method.steps * cost))
        state = WholeState(problem.clean, [()] * (1 + iters), generator)
        state.goal, state.method = problem.clean, method
        return state

    def advance(self, denoiser: Denoises, state: WholeState) -> Tensor:
        if state.index == 0:
            return walked(state.method.start, denoiser, state.goal)
        return state.x - self.eta * (state.method.generated(denoiser, state.x) - state.goal)

    def generated(self, denoiser: Denoises, noise: Tensor, skip: int = 0) -> Tensor:
        """The sample from `noise`, which stands at the grid's point `skip`."""
        made = self.solver
        if skip > 0:
            made = replace(made, grid=made.times(denoiser.schedule, None)[skip:], steps=None)
        problem = Sampling(denoiser, noise, metric=lambda x: 0.0)
        problem.denoiser = denoiser
        state = made.init(problem, torch.Generator(noise.device).manual_seed(0))
        while not made.done(state):
            state = made.step(problem, state)
        return state.x

    def edit(self, source: Denoises, target: Denoises, y: Tensor, skip: int = 0) -> list[Tensor]:
        """Edits of data y: the plain one, then one per iteration, ever nearer to y.

        Args:
            source: the denoiser under the condition that describes y; the start is inverted with it.
            target: the denoiser under the condition that is wanted.
            y: the data, shape (batch, ...).
            skip: steps at the noisy end that are left out, so that more of y is kept.
        """
        steps = self._steps("edit")
        check.integer("skip", skip, 0, steps - 1)
        z = self.latent(source, y, skip)
        edits = [self.generated(target, z, skip)]
        for _ in range(self.iters):
            z = z - self.eta * (edits[-1] - y)
            edits.append(self.generated(target, z, skip))
        return edits

    def latent(self, denoiser: Denoises, y: Tensor, skip: int = 0) -> Tensor:
        """The start: y inverted up to the grid's point `skip`."""
        start = self.start
        if skip > 0:
            start = replace(start, grid=self.times(denoiser.schedule, None)[skip:], steps=None)
        return walked(start, denoiser, y)

    def estimate_eta(
        self,
        denoiser: Denoises,
        y: Tensor,
        generator: torch.Generator | None = None,
        *,
        pairs: int = 8,
        radius: float = 0.1,
        safety: float = 0.5,
    ) -> float:
        """A step size that should converge: `safety` times the least bound over pairs of perturbed starts.

        Args:
            y: data to probe at, shape (batch, ...).
            generator: source of the perturbations.
            pairs: perturbations per sample.
            radius: their standard deviation.
            safety: fraction of the bound, in (0, 1].

        Cost: `pairs + 1` generations and the start.
        """
        self._steps("estimate_eta")
        check.integer("pairs", pairs, 1)
        check.positive("radius", radius)
        check.real("safety", safety, 0.0, 1.0, open_low=True)
        z = self.latent(denoiser, y)
        outcome = self.generated(denoiser, z)
        bound = math.inf
        for _ in range(pairs):
            moved = radius * standard_normal(z, generator or torch.default_generator)
            change = (self.generated(denoiser, z + moved) - outcome).flatten(1)
            along = (change * moved.flatten(1)).sum(1)
            bound = min(bound, float((2.0 * along / change.square().sum(1)).min()))
        if not bound > 0.0:
            raise InputError("no step size converges here: generation turns some perturbation round; use a finer grid")
        return safety * bound

    def _steps(self, caller: str) -> int:
        if self.steps is None and isinstance(self.grid, str):
            raise InputError(f"FlowOpt.{caller}: give steps, e.g. FlowOpt(steps=15)")
        return self.steps if isinstance(self.grid, str) and self.steps is not None else len(self.grid) - 1


def walked(method: Inverter, denoiser: Denoises, y: Tensor) -> Tensor:
    """The end of an inversion's walk."""
    state = SamplerState(y, planned(method, denoiser.schedule, None), torch.Generator())
    while not method.done(state):
        with solving(lambda: f"start, step {state.index + 1} of {len(state.plan)}"):
            state.x = method.advance(denoiser, state)
        state.index += 1
    return state.x
