"""The exponential integrator of the reverse SDE, and what minimal assumptions say about its divergence."""

from __future__ import annotations

import math
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
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import Sampler, Step, sampler
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.numerics.metrics import gaussian_kl
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid, checked

CARD = Card(
    name="exponential-integrator-sde",
    family="diffusion",
    title="Improved Analysis of Score-based Generative Modeling: User-Friendly Bounds under Minimal Smoothness "
    "Assumptions",
    authors="Chen, Lee & Lu",
    year=2022,
    arxiv="2211.01916",
    paper_id=104,
    summary="Solves the reverse SDE with the score frozen over each step, on steps that shrink geometrically.",
    cost="One evaluation per step, fresh noise in each.",
    when="For samples whose law has a guaranteed divergence, where many steps are affordable.",
    kinds=("sample",),
    needs=("law",),
    use=(
        "from hasten.numerics.mixture import circle\n"
        "from hasten.numerics.ornstein_uhlenbeck import OrnsteinUhlenbeck\n"
        "from hasten.numerics.time_grid import early_stopping\n"
        "denoiser, grid = circle().denoiser(OrnsteinUhlenbeck()), early_stopping(6.0, 1e-3, 100)\n"
        'samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="exponential-integrator-sde", grid=grid)'
    ),
)

NODES, WEIGHTS = np.polynomial.legendre.leggauss(64)


@sampler(CARD)
@dataclass(frozen=True)
class ExponentialIntegratorSDE(Sampler):
    """Reverse SDE with the score frozen at the start of each step, everything else exact.

    On variance-preserving schedules, a step of length `h = log(alpha_t/alpha_s)` from s to t is
    `x_t = e^h x + 2 (e^h - 1) score(x, s) + sqrt(e^{2h} - 1) z`. In general the factor of the score is
    `2 alpha_t int alpha rho^2 dlog(rho)` from rho_t to rho_s, and the variance `alpha_t^2 (rho_s^2 - rho_t^2)`.

    Args:
        grid, steps: see `Sampler`; `hasten.numerics.time_grid.early_stopping` makes the paper's grid.

    Cost: one evaluation per step. Source: Chen, Lee & Lu (2022), arXiv 2211.01916.
    """

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        if schedule.alpha(times[0]) < 1e-12 or schedule.sigma(times[-1]) == 0.0:
            raise InputError(
                f"the grid runs from t={times[0]:g} to {times[-1]:g}, where alpha or sigma is 0; stop it before, at a "
                "t_min above 0 and a T with some signal"
            )
        steps: list[Step] = []
        for s, t in pairwise(times):
            low, high = schedule.lam(s), schedule.lam(t)
            lams = torch.from_numpy(0.5 * (high - low) * NODES + 0.5 * (high + low))
            integrand = schedule.alpha(schedule.t_of_lam(lams)) * (-2.0 * lams).exp()
            alpha = schedule.alpha(t)
            pull = alpha * (high - low) * float(torch.from_numpy(WEIGHTS) @ integrand)
            fresh = alpha * schedule.rho(s) * math.sqrt(-math.expm1(2.0 * (low - high)))
            steps.append((s, alpha / schedule.alpha(s), -pull / schedule.sigma(s), fresh))
        return steps

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        s, scale, weight, fresh = state.plan[state.index]
        x = (state.x * scale).add_(denoiser.eps(state.x, s), alpha=weight)
        return x.add_(standard_normal(x, state.generator), alpha=fresh)


def gaussian_sde_kl(variances: Any, schedule: Schedule, grid: Sequence[float], prior: float = 1.0) -> float:
    """Exact divergence KL(noisy data at the grid's end | samples) for data N(0, diag(variances)), exact score.

    The sampler is linear, so its variances follow a recursion.

    Args:
        variances: of the data, shape (d,); 0 is a point.
        schedule, grid: where the sampler goes.
        prior: variance of the start noise.
    """
    spectrum = torch.as_tensor(variances, dtype=torch.float64)
    if not bool((spectrum >= 0).all()):
        raise InputError("variances must not be negative")
    drawn = torch.full_like(spectrum, check.positive("prior", prior))
    times = checked(schedule, grid)
    for s, scale, weight, fresh in ExponentialIntegratorSDE().plan(schedule, times):
        total = schedule.alpha(s) ** 2 * spectrum + schedule.sigma(s) ** 2
        drawn = (scale + weight * schedule.sigma(s) / total).square() * drawn + fresh**2
    end = times[-1]
    return gaussian_kl(schedule.alpha(end) ** 2 * spectrum + schedule.sigma(end) ** 2, drawn)


def kl_bound(d: int, m2: float, T: float, kappa: float, N: int, score_err: float = 0.0) -> float:
    """Order of the divergence of the sampler's law from the data's, noised up to the early stop.

    `(d + m2) exp(-2T) + T score_err^2 + kappa^2 d N`: start, score and discretisation. All that the data must have is a
    second moment. Constants are set to one, so read it as an order.

    Args:
        d: dimension.
        m2: second moment of the data, `E|x_0|^2`.
        T: end of the Ornstein-Uhlenbeck process.
        kappa: steps are at most `kappa min(1, t)`; see `step_fraction`.
        N: number of steps.
        score_err: root mean square error of the score along the process.
    """
    check.integer("d", d, 1)
    check.integer("N", N, 1)
    for name, value in (("m2", m2), ("score_err", score_err)):
        check.nonnegative(name, value)
    for name, value in (("T", T), ("kappa", kappa)):
        check.positive(name, value)
    return (d + m2) * math.exp(-2.0 * T) + T * score_err**2 + kappa**2 * d * N


def step_fraction(grid: Sequence[float]) -> float:
    """The smallest `kappa` such that every step of the grid is at most `kappa min(1, t)`, t its (cleaner) end."""
    return max((s - t) / min(1.0, t) for s, t in pairwise(grid))
