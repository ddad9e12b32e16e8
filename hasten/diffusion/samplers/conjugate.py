"""Conjugate integrators: one step of Euler's method in coordinates in which the ODE is nearly still."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, Real
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises, Sampling
from hasten.diffusion.base import Sampler, Step, sampler
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import Schedule
from hasten.numerics.reference import rms
from hasten.numerics.time_grid import Grid

CARD = Card(
    name="conjugate",
    family="diffusion",
    title="Efficient Integrators for Diffusion Generative Models",
    authors="Pandey, Rudolph & Mandt",
    year=2023,
    arxiv="2310.07894",
    paper_id=287,
    summary="Euler's method in coordinates without the linear drift, and with as much growth more as `lam` says.",
    cost="One evaluation per step, nothing stored.",
    when="To tune a first-order sampler of very few steps by one number.",
    kinds=("sample",),
    search_space={"lam": Real(-0.5, 0.5), "grid": Choice("quadratic", "uniform", "logsnr")},
    use='samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="conjugate", steps=10{hyper})',
)


@sampler(CARD)
@dataclass(frozen=True)
class ConjugateIntegrator(Sampler):
    """lambda-DDIM: Euler's method on `y = A_t x`, `A_t = exp(integral of (B - F_t) dt)`.

    For `dx/dt = F_t x + Psi_t eps` a step from s to t with `h = t - s` is
    `y_t = y_s + h A_s B A_s^{-1} y_s + (integral of A Psi over the step) eps(x_s, s)`. The linear drift is
    `F_t = d log alpha/dt`, `Psi_t = g^2/(2 sigma_t)`. `B = 0` is the exponential integrator, that is DDIM.

    Args:
        lam: strength of B, per unit of the schedule's time range.
        mode: `identity` takes `B = lam I` (lambda-DDIM-I), `ones` takes `B = lam` times the matrix of ones over the
            coordinates of a sample, divided by their number (lambda-DDIM-II).
        quad: nodes of the Gauss-Legendre rule for the integrals.
        grid, steps: see `Sampler`.

    Cost: one evaluation per step. Source: Pandey, Rudolph & Mandt (2023), arXiv 2310.07894.
    """

    lam: float = 0.0
    mode: str = "identity"
    quad: int = 32
    grid: str | Sequence[float] = field(default="quadratic", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.real("lam", self.lam, -20.0, 20.0)
        check.one_of("mode", self.mode, ("identity", "ones"))
        check.integer("quad", self.quad, 2)

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        if schedule.alpha(times[0]) < 1e-12:
            raise InputError(f"the grid begins at t={times[0]:g} with alpha=0; begin it at a smaller T")
        rate = self.lam / schedule.T
        steps: list[Step] = []
        for s, t in pairwise(times):
            kept = schedule.alpha(t) / schedule.alpha(s)
            noise = schedule.alpha(t) * (schedule.rho(t) - schedule.rho(s))
            steps.append((s, kept, noise, *self._conjugate(schedule, s, t, rate)))
        return steps

    def _conjugate(self, schedule: Schedule, s: float, t: float, rate: float) -> tuple[float, float]:
        """Factors of x and of eps along B, in the state's own coordinates at the end of the step.

        In time from s, `A = exp(rate (tau - s))/alpha(tau)` and `Psi dtau = alpha d rho`, rho in place of time.
        """
        back = math.exp(-rate * (t - s))
        kept = schedule.alpha(t) / schedule.alpha(s) * back * (1.0 + (t - s) * rate)
        if rate == 0.0:
            return kept, schedule.alpha(t) * (schedule.rho(t) - schedule.rho(s))
        nodes, weights = np.polynomial.legendre.leggauss(self.quad)
        start, end = schedule.rho(s), schedule.rho(t)
        at = schedule.t_of_rho(torch.from_numpy(0.5 * (end - start) * nodes + 0.5 * (end + start)))
        integral = 0.5 * (end - start) * float(weights @ np.exp(rate * (at.numpy() - s)))
        return kept, schedule.alpha(t) * back * integral

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        s, kept, noise, kept_along, noise_along = state.plan[state.index]
        x, eps = state.x, denoiser.eps(state.x, s)
        if self.mode == "identity":
            return (x * kept_along).add_(eps, alpha=noise_along)
        along_x, along_eps = _mean(x), _mean(eps)
        rest = (x - along_x) * kept + (eps - along_eps) * noise
        return rest + along_x * kept_along + along_eps * noise_along

    def search(
        self, denoiser: Denoiser, noise: Tensor, candidates: Sequence[float] | None = None, steps: int | None = None
    ) -> ConjugateIntegrator:
        """The same integrator with the lam whose samples lie nearest to the exact ODE solution.

        Args:
            denoiser: the model that samples will be drawn from.
            noise: start noise at T; the distance is measured on it.
            candidates: values to try, 21 from -1 to 1 if not given; 0 is always tried, and kept if none is better.
            steps: steps to tune for; the integrator's own if not given.

        Cost: as many evaluations per value as steps, and 1600 for the exact solution.
        """
        values = [k / 10.0 for k in range(-10, 11)] if candidates is None else list(candidates)
        exact = denoiser.solve(noise)
        count = replace(self, steps=self.steps if steps is None else steps)
        object.__setattr__(count, "card", self.card)

        def loss(lam: float) -> float:
            made = replace(count, lam=lam)
            object.__setattr__(made, "card", self.card)
            problem = Sampling(denoiser, noise, metric=lambda x: rms(x, exact))
            state = made.init(problem, torch.default_generator)
            while not made.done(state):
                state = made.step(problem, state)
            value = problem.metric(state.x)
            return value if math.isfinite(value) else math.inf

        best = replace(count, lam=min((0.0, *values), key=loss))
        object.__setattr__(best, "card", self.card)
        return best


def _mean(x: Tensor) -> Tensor:
    """Projection of each sample onto constant vectors: the matrix of ones over its number of coordinates."""
    return x.flatten(1).mean(1).reshape(-1, *(1,) * (x.ndim - 1)).expand_as(x)
