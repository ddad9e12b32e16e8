"""DPM-Solver with adaptive steps: an embedded pair of orders chooses each step's length."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.errors import DivergedError, InputError
from hasten.core.kinds.sample import Sampling
from hasten.diffusion.base import combine, sampler, solving
from hasten.diffusion.samplers.exponential import Predicting, Span, first_order, second_order, third_order

CARD = Card(
    name="dpm-solver-adaptive",
    family="diffusion",
    title="DPM-Solver: A Fast ODE Solver for Diffusion Probabilistic Model Sampling in Around 10 Steps",
    authors="Lu, Zhou, Bao, Chen, Li & Zhu",
    year=2022,
    arxiv="2206.00927",
    paper_id=92,
    summary="Chooses each step's length from the difference between two orders.",
    cost="Two or three evaluations per attempted step.",
    when="When the accuracy is given and the number of evaluations is not.",
    kinds=("sample",),
    search_space={"order": Choice(2, 3), "rtol": Choice(0.02, 0.05, 0.1, 0.3)},
    use='samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="dpm-solver-adaptive"{hyper})',
)


@dataclass
class AdaptiveState:
    """A chain under way: `x` at `lam`, the next step's length `h`, and the samples of the lower order before it.

    `outputs` holds the prediction at x if a rejected attempt has already paid for it; `left` the evaluations that may
    still be spent, None for any number; `index` counts attempts.
    """

    x: Tensor
    lam: float
    h: float
    before: Tensor
    left: int | None
    outputs: list[Tensor] = field(default_factory=list)
    index: int = 0
    finished: bool = False


@sampler(CARD)
@dataclass(frozen=True)
class DPMSolverAdaptive(Predicting):
    """DPM-Solver with step sizes from an embedded pair: orders 1 and 2, or 2 and 3.

    A step of length h in lam is accepted if `E <= 1`, with E the root mean square, worst over the batch, of
    `(x_high - x_low)/max(atol, rtol max(|x_low|, |x_before|))`; then `h <- min(0.9 h E^{-1/order}, what is left)`.
    Where evaluations are limited, no step is shorter than equal steps that spend what is left, and such a step is
    accepted whatever its error.

    Args:
        order: 2 or 3, the higher order of the pair.
        atol, rtol: absolute and relative tolerance; 0.0078 is one grey level of images in [-1, 1].
        h0: first step in lam.
        predict: `eps` or `x0`.

    Cost: `order` evaluations per attempt, one less after a rejection.
    Source: Lu et al. (2022), arXiv 2206.00927.
    """

    order: int = 3
    atol: float = 0.0078
    rtol: float = 0.05
    h0: float = 0.05
    predict: str = "eps"

    def __post_init__(self) -> None:
        super().__post_init__()
        check.integer("order", self.order, 2, 3)
        for name in ("atol", "rtol", "h0"):
            check.positive(name, getattr(self, name))
        check.one_of("predict", self.predict, ("eps", "x0"))
        if self.steps is not None or not isinstance(self.grid, str):
            raise InputError("dpm-solver-adaptive chooses its own steps; set atol and rtol instead of steps or times")

    def init(self, problem: Sampling, generator: torch.Generator) -> AdaptiveState:
        schedule = problem.schedule
        self.spans(schedule, (schedule.T, schedule.t_min))
        if problem.horizon is not None and problem.horizon < self.order:
            raise InputError(f"{self.card.name} needs {self.order} evaluations, but only {problem.horizon} may be used")
        start = schedule.lam(schedule.T)
        h = min(self.h0, schedule.lam(schedule.t_min) - start)
        return AdaptiveState(problem.noise, start, h, problem.noise, problem.horizon)

    def step(self, problem: Sampling, state: AdaptiveState) -> AdaptiveState:
        schedule, denoiser, order = problem.schedule, problem.denoiser, self.order
        rest = schedule.lam(schedule.t_min) - state.lam
        shortest = 0.0 if state.left is None else rest / (state.left // order)
        forced = state.h <= shortest
        h = max(state.h, shortest)
        last = h >= rest * (1.0 - 1e-9)
        h = rest if last else h
        s = schedule.t_of_lam(state.lam) if state.index else schedule.T
        span = Span(schedule, self.predict, s, schedule.t_min if last else schedule.t_of_lam(state.lam + h))
        lower, higher = (
            (first_order(span), second_order(span))
            if order == 2
            else (second_order(span, r1=1.0 / 3.0), third_order(span))
        )
        low = high = x = state.x
        with solving(lambda: f"attempt {state.index + 1}"):
            for i, (t, scale, weights) in enumerate(higher):
                if i > 0 or not state.outputs:
                    state.outputs.insert(0, self.output(denoiser, high, t))
                    state.left = None if state.left is None else state.left - 1
                if i == len(lower) - 1:
                    low = combine(lower[-1].scale, x, lower[-1].weights, state.outputs)
                high = combine(scale, x, weights, state.outputs)
            allowed = (self.rtol * torch.maximum(low.abs(), state.before.abs())).clamp_(min=self.atol)
            error = float(((high - low) / allowed).flatten(1).square().mean(1).max().sqrt())
        state.index += 1
        if not math.isfinite(error):
            raise DivergedError(f"attempt {state.index}: the error estimate became {error} at t={s:.4g}")
        if error <= 1.0 or forced:
            state.x, state.before, state.lam, state.finished = high, low, state.lam + h, last
            state.outputs.clear()
        else:
            del state.outputs[:-1]
        state.h = 0.9 * h * max(error, 1e-12) ** (-1.0 / order)
        whole = schedule.lam(schedule.t_min) - schedule.lam(schedule.T)
        if state.left is None and state.h < 1e-4 * whole and not state.finished:
            raise DivergedError(
                f"attempt {state.index}: the step shrank to {state.h:.1e} in lam at t={s:.4g}; the network is too "
                "rough for this tolerance, raise atol or rtol"
            )
        return state

    def done(self, state: AdaptiveState) -> bool:
        return state.finished
