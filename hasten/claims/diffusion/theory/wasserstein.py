"""Claims on Wasserstein errors of probability-flow samplers, exact on Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from hasten.core.claim import claim
from hasten.diffusion.theory.wasserstein import gaussian_pf_ode_w2, pf_ode_budget
from hasten.numerics.noise import VE, Schedule, VPLinear
from hasten.numerics.reference import order_fit

DIMS = (4, 16, 64, 256)
COUNTS = (50, 100, 200, 400, 800)
SCHEDULE = VPLinear()
SCALE = "Gaussian data with variances spread over [0.2, 2], exact score, VP, steps uniform in t"
HORIZONS = (0.6, 0.7, 0.8, 0.9, 1.0)
SIGMAS = (20.0, 40.0, 80.0, 160.0)


def _spread(d: int) -> Tensor:
    return 0.2 + 1.8 * (torch.arange(d, dtype=torch.float64) + 0.5) / d


def _slope(x: Sequence[float], errors: Sequence[float]) -> float:
    return float(np.polyfit(x, np.log(errors), 1)[0])


def _worst(slopes: Sequence[float], target: float) -> float:
    return max(slopes, key=lambda slope: abs(slope - target))


@claim(
    method="diffusion.pf-ode-w2",
    baseline="exact law",
    statement=f"The error of the steps falls as 1/N, 50 to 800 steps, d=4 to 256: {SCALE}.",
    quantity="fitted order in N, the farthest from 1 over d",
    relation="in",
    threshold=(0.9, 1.1),
    paper_id=72,
    seeds=(0,),
)
def error_falls_with_steps(seed: int) -> float:
    return _worst(
        [order_fit([gaussian_pf_ode_w2(_spread(d), SCHEDULE, n).steps for n in COUNTS], COUNTS) for d in DIMS], 1.0
    )


@claim(
    method="diffusion.pf-ode-w2",
    baseline="exact law",
    statement=f"The error of the steps grows as the square root of the dimension, d=4 to 256: {SCALE}.",
    quantity="slope of log error against log d, the farthest from 1/2 over N",
    relation="in",
    threshold=(0.48, 0.52),
    paper_id=72,
    seeds=(0,),
)
def error_grows_with_dimension(seed: int) -> float:
    def slope(n: int) -> float:
        return _slope([math.log(d) for d in DIMS], [gaussian_pf_ode_w2(_spread(d), SCHEDULE, n).steps for d in DIMS])

    return _worst([slope(n) for n in COUNTS], 0.5)


@claim(
    method="diffusion.pf-ode-w2",
    baseline="exact law",
    statement=f"The steps needed for an error eps grow as sqrt(d)/eps, eps=0.02 to 0.1: {SCALE}.",
    quantity="largest relative deviation of the number of steps from a constant times sqrt(d)/eps",
    threshold=0.1,
    paper_id=72,
    seeds=(0,),
)
def steps_for_an_error(seed: int) -> float:
    pairs = [(d, eps) for d in DIMS for eps in (0.02, 0.05, 0.1)]
    factors = [pf_ode_budget(SCHEDULE, d, eps)[0] * eps / math.sqrt(d) for d, eps in pairs]
    middle = math.exp(float(np.mean(np.log(factors))))
    return max(abs(factor / middle - 1.0) for factor in factors)


def _start_errors(schedules: Sequence[Schedule], mean: float) -> list[float]:
    return [gaussian_pf_ode_w2(_spread(16), schedule, 1, mean=mean).start for schedule in schedules]


def _exponential_decay(mean: float) -> float:
    """Slope of the log start error against `int beta`."""
    schedules = [VPLinear(T=horizon) for horizon in HORIZONS]
    return _slope([-2.0 * schedule.log_alpha(schedule.T) for schedule in schedules], _start_errors(schedules, mean))


def _polynomial_decay(mean: float) -> float:
    """Slope of the log start error against log sigma_max."""
    return _slope([math.log(sigma) for sigma in SIGMAS], _start_errors([VE(sigma_max=s) for s in SIGMAS], mean))


def _decay(name: str, statement: str, low: float, high: float) -> Callable[[Callable[[int], float]], object]:
    return claim(
        method="diffusion.pf-ode-w2",
        baseline="exact law",
        statement=statement,
        quantity=name,
        relation="in",
        threshold=(low, high),
        paper_id=72,
        seeds=(0,),
    )


@_decay(
    "slope of the log error against int beta",
    "Under VP a centred start's error falls as exp(-int beta): 16-d Gaussian, T=0.6 to 1.",
    -1.05,
    -0.95,
)
def vp_start_centred(seed: int) -> float:
    return _exponential_decay(0.0)


@_decay(
    "slope of the log error against int beta",
    "Under VP the start's error falls as exp(-int beta/2) if the data have a mean: 16-d Gaussian, T=0.6 to 1.",
    -0.55,
    -0.45,
)
def vp_start_with_mean(seed: int) -> float:
    return _exponential_decay(1.0)


@_decay(
    "slope of the log error against log sigma_max",
    "Under VE a centred start's error falls only as sigma_max^-2: 16-d Gaussian, sigma_max=20 to 160.",
    -2.1,
    -1.9,
)
def ve_start_centred(seed: int) -> float:
    return _polynomial_decay(0.0)


@_decay(
    "slope of the log error against log sigma_max",
    "Under VE the start's error falls only as 1/sigma_max if the data have a mean: 16-d Gaussian, sigma_max=20 to 160.",
    -1.1,
    -0.9,
)
def ve_start_with_mean(seed: int) -> float:
    return _polynomial_decay(1.0)
