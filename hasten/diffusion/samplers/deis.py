"""DEIS: exponential integrators that extrapolate the noise prediction by a polynomial through past ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch

from hasten.core import check
from hasten.core.card import Card, Choice, Integer
from hasten.core.errors import InputError
from hasten.diffusion.base import Row, Sampler, Step, sampler
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

Array = np.ndarray


def _card(name: str, summary: str, cost: str, when: str) -> Card:
    return Card(
        name=name,
        family="diffusion",
        title="Fast Sampling of Diffusion Models with Exponential Integrator",
        authors="Zhang & Chen",
        year=2022,
        arxiv="2204.13902",
        paper_id=191,
        summary=summary,
        cost=cost,
        when=when,
        kinds=("sample",),
        search_space={"order": Integer(1, 3), "grid": Choice("quadratic", "logsnr", "uniform", "karras")},
        use=f'samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="{name}", nfe=12{{hyper}})',
    )


TAB = _card(
    "deis",
    "Integrates the linear part exactly and extrapolates the noise by a polynomial in t through past predictions.",
    "One evaluation per step, `order` stored outputs.",
    "At 6 to 20 evaluations on a variance-preserving model.",
)
RHO_AB = _card(
    "deis-rho-ab",
    "Adams-Bashforth with variable steps in the noise-to-signal ratio.",
    "One evaluation per step, `order` stored outputs.",
    "As `deis`, on schedules that are simpler in sigma than in t (VE, EDM).",
)
RHO_RK = _card(
    "deis-rho-rk",
    "Heun's, Kutta's third-order or the classical Runge-Kutta method in the noise-to-signal ratio.",
    "`order + 1` evaluations per step, nothing stored.",
    "With many evaluations, where a restartable one-step method of high order is wanted.",
)

TABLEAUX: dict[int, tuple[tuple[float, ...], ...]] = {
    0: ((1.0,),),
    1: ((1.0,), (0.5, 0.5)),
    2: ((0.5,), (-1.0, 2.0), (1 / 6, 2 / 3, 1 / 6)),
    3: ((0.5,), (0.0, 0.5), (0.0, 0.0, 1.0), (1 / 6, 1 / 3, 1 / 3, 1 / 6)),
}


@sampler(RHO_RK, variant="rho_rk")
@sampler(RHO_AB, variant="rho_ab")
@sampler(TAB)
@dataclass(frozen=True)
class DEIS(Sampler):
    """Diffusion exponential integrator sampler.

    The ODE `dx/dt = f(t) x + (g(t)^2/(2 sigma_t)) eps` is integrated exactly but for eps, which is replaced by its
    interpolation polynomial through the last `order + 1` predictions:
    `x_{i+1} = (alpha_{i+1}/alpha_i) x_i + sum_j C_ij eps_{i-j}`, `C_ij` the integral over the step of
    `(alpha_{i+1}/alpha) (g^2/(2 sigma))` times the j-th Lagrange polynomial. The first steps use what is stored so far.

    Args:
        order: past predictions used, 0 (DDIM) to 3.
        variant: the polynomial's variable: `tab` t, `rho_ab` `rho = sigma/alpha`, `log_rho_ab` log rho. `rho_rk` is a
            Runge-Kutta method of order `order + 1` on `dy/drho = eps`, `y = x/alpha`, instead.
        quad: nodes of the Gauss-Legendre rule for the integrals.
        grid, steps: see `Sampler`.

    Cost: one evaluation per step and `order` stored outputs; `rho_rk` has `order + 1` evaluations per step.
    Coefficients take `steps * order^2 * quad` operations, once per grid.
    Source: Zhang & Chen (2022), arXiv 2204.13902.
    """

    order: int = 3
    variant: str = "tab"
    quad: int = 64
    grid: str | Sequence[float] = field(default="quadratic", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.integer("order", self.order, 0, 3)
        check.one_of("variant", self.variant, ("tab", "rho_ab", "log_rho_ab", "rho_rk"))
        check.integer("quad", self.quad, 2)

    @property
    def evaluations(self) -> int:
        return self.order + 1 if self.variant == "rho_rk" else 1

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        if schedule.alpha(times[0]) < 1e-12:
            raise InputError(f"the grid begins at t={times[0]:g} with alpha=0; begin it at a smaller T")
        if schedule.sigma(times[-1]) == 0.0:
            raise InputError(f"the grid ends at t={times[-1]:g} with sigma=0; end it at a positive t_min")
        if self.variant == "rho_rk":
            return [self._runge_kutta(schedule, s, t) for s, t in pairwise(times)]
        at = torch.tensor(times, dtype=torch.float64)
        alpha = schedule.alpha(at).tolist()
        variable, weight = self._variable(schedule)
        nodes = variable(at).numpy()
        plan: list[Step] = []
        for i in range(len(times) - 1):
            past = nodes[max(0, i - self.order) : i + 1][::-1]
            factors = _integrals(weight, past, nodes[i], nodes[i + 1], self.quad)
            plan.append((Row(times[i], alpha[i + 1] / alpha[i], tuple((alpha[i + 1] * factors).tolist())),))
        return plan

    def _variable(self, schedule: Schedule) -> tuple[Callable[[Any], Any], Callable[[Array], Array]]:
        """The polynomial's variable as a function of t, and the integrand's other factor: `d rho/d variable`."""

        def rate(t: Array) -> Array:
            at = torch.from_numpy(t)
            sigma = schedule.sigma(at)
            return ((schedule.dsigma(at) - schedule.dlog_alpha(at) * sigma) / schedule.alpha(at)).numpy()

        return {
            "tab": (lambda t: t, rate),
            "rho_ab": (schedule.rho, np.ones_like),
            "log_rho_ab": (lambda t: -schedule.lam(t), np.exp),
        }[self.variant]

    def _runge_kutta(self, schedule: Schedule, s: float, t: float) -> Step:
        """Rows of one step of `dy/drho = eps` in terms of x."""
        tableau = TABLEAUX[self.order]
        start, h = schedule.rho(s), schedule.rho(t) - schedule.rho(s)
        rows, now = [], s
        for i, weights in enumerate(tableau):
            end = t if i == len(tableau) - 1 else self._at(schedule, start + sum(weights) * h, s, t)
            alpha = schedule.alpha(end)
            rows.append(Row(now, alpha / schedule.alpha(s), tuple(alpha * h * weight for weight in reversed(weights))))
            now = end
        return tuple(rows)

    @staticmethod
    def _at(schedule: Schedule, rho: float, s: float, t: float) -> float:
        """Time of this rho inside the step, exact at its ends."""
        return min(max(schedule.t_of_rho(rho), t), s)


def _integrals(weight: Callable[[Array], Array], past: Array, low: float, high: float, quad: int) -> Array:
    """Integrals from `low` to `high` of `weight` times each Lagrange polynomial on the nodes `past`."""
    x, w = np.polynomial.legendre.leggauss(quad)
    u = 0.5 * (high - low) * x + 0.5 * (high + low)
    measure = 0.5 * (high - low) * w * weight(u)
    factors = np.empty(len(past))
    for j, node in enumerate(past):
        others = np.delete(past, j)
        factors[j] = measure @ np.prod((u[:, None] - others) / (node - others), axis=1)
    return factors
