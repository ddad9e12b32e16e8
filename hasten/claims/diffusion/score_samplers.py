"""Claims of accelerated DDIM and DDPM."""

from __future__ import annotations

from hasten.claims.diffusion.mixture_2d import error, order
from hasten.core.claim import claim
from hasten.diffusion.samplers.score_samplers import AcceleratedDDIM, AcceleratedDDPM
from hasten.numerics import time_grid
from hasten.numerics.noise import VPLinear
from hasten.numerics.reference import order_fit

COUNTS = (96, 192, 384, 768)
SCALE = "five-component mixture in 2-d, exact score, VP, grid uniform in the log signal-to-noise ratio"
NOTE = (
    "The paper proves rates of the total variation, 1/T^2 against 1/T; here the distance to the exact ODE solution "
    "from the same noise is measured."
)
LAW_NOTE = (
    "The paper proves rates of the total variation, 1/T against 1/sqrt(T). On Gaussian data the sampler is linear and "
    "its variance follows from an exact recursion: nothing is random and one seed suffices."
)
DATA = 0.25


@claim(
    method="diffusion.accelerated-ddim",
    baseline="exact ODE solution",
    statement=f"Accelerated DDIM converges at order 1.7 or more from 96 to 768 steps: {SCALE}, 256 points.",
    quantity="fitted order of convergence",
    relation=">=",
    threshold=1.7,
    paper_id=109,
    note=NOTE,
)
def order_accelerated(seed: int) -> float:
    return order(seed, AcceleratedDDIM(), COUNTS)


@claim(
    method="diffusion.accelerated-ddim",
    baseline="exact ODE solution",
    statement=f"Without the correction the order is at most 1.1 from 96 to 768 steps: {SCALE}, 256 points.",
    quantity="fitted order of convergence, accelerated=False",
    threshold=1.1,
    paper_id=109,
    note=NOTE,
)
def order_plain(seed: int) -> float:
    return order(seed, AcceleratedDDIM(accelerated=False), COUNTS)


@claim(
    method="diffusion.accelerated-ddim",
    baseline="diffusion.accelerated-ddim",
    statement=f"With 96 steps the error is at most 0.12 times that of 96 plain steps: {SCALE}, 256 points.",
    quantity="RMS error, ratio to accelerated=False at 96 steps",
    threshold=0.12,
    paper_id=109,
    note=NOTE,
)
def error_at_equal_steps(seed: int) -> float:
    return error(seed, AcceleratedDDIM(), 96) / error(seed, AcceleratedDDIM(accelerated=False), 96)


@claim(
    method="diffusion.accelerated-ddim",
    baseline="diffusion.accelerated-ddim",
    statement=f"With 96 steps the error is at most 0.25 times that of 192 plain steps, which cost as much: {SCALE}.",
    quantity="RMS error, ratio to accelerated=False at 192 evaluations",
    threshold=0.25,
    paper_id=109,
    note=NOTE,
)
def error_at_equal_evaluations(seed: int) -> float:
    return error(seed, AcceleratedDDIM(), 96) / error(seed, AcceleratedDDIM(accelerated=False), 192)


def _order_of_variance(accelerated: bool) -> float:
    schedule, counts = VPLinear(), (48, 96, 192, 384)
    goal = schedule.alpha(schedule.t_min) ** 2 * DATA + schedule.sigma(schedule.t_min) ** 2
    made = AcceleratedDDPM(accelerated=accelerated)
    found = [made.variance(schedule, time_grid.make(schedule, count), DATA) for count in counts]
    return order_fit([abs(variance - goal) for variance in found], counts)


@claim(
    method="diffusion.accelerated-ddpm",
    baseline="exact law",
    statement="The variance of accelerated DDPM's samples converges at order 1.9 or more: 1-d data N(0, 1/4), VP, grid "
    "uniform in the log signal-to-noise ratio, 48 to 384 steps.",
    quantity="fitted order of convergence of the variance",
    relation=">=",
    threshold=1.9,
    paper_id=109,
    seeds=(0,),
    note=LAW_NOTE,
)
def order_of_variance_accelerated(seed: int) -> float:
    return _order_of_variance(accelerated=True)


@claim(
    method="diffusion.accelerated-ddpm",
    baseline="exact law",
    statement="The variance of plain DDPM's samples converges at order 1.2 or less: 1-d data N(0, 1/4), VP, grid "
    "uniform in the log signal-to-noise ratio, 48 to 384 steps.",
    quantity="fitted order of convergence of the variance, accelerated=False",
    threshold=1.2,
    paper_id=109,
    seeds=(0,),
    note=LAW_NOTE,
)
def order_of_variance_plain(seed: int) -> float:
    return _order_of_variance(accelerated=False)
