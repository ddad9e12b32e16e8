"""Claims of the exponential integrator of the reverse SDE, on Gaussians, where the divergence is exact."""

from __future__ import annotations

from hasten.core.claim import claim
from hasten.diffusion.theory.exponential_sde import gaussian_sde_kl, kl_bound, step_fraction
from hasten.numerics.ornstein_uhlenbeck import OrnsteinUhlenbeck
from hasten.numerics.reference import order_fit
from hasten.numerics.time_grid import Grid, early_stopping, make

DATA = (0.0, 0.01)
T, DELTA = 6.0, 1e-3
SCHEDULE = OrnsteinUhlenbeck(T=T, t_min=DELTA)
SCALE = "a point and N(0, 0.01) in 1-d, exact score, T=6, stopped at 1e-3"


def _grid(kind: str, steps: int) -> Grid:
    return early_stopping(T, DELTA, steps) if kind == "geometric" else make(SCHEDULE, steps, kind)


def _kl(variance: float, kind: str, steps: int) -> float:
    return gaussian_sde_kl([variance], SCHEDULE, _grid(kind, steps))


def _worst_ratio(kind: str) -> float:
    pairs = [(variance, steps) for variance in DATA for steps in (100, 200)]
    return max(_kl(variance, "geometric", steps) / _kl(variance, kind, steps) for variance, steps in pairs)


@claim(
    method="diffusion.exponential-integrator-sde",
    baseline="uniform steps",
    statement=f"With 100 and 200 steps geometric ones leave at most 0.01 times the divergence: {SCALE}.",
    quantity="KL divergence, ratio to uniform steps, the worst of both laws and numbers of steps",
    threshold=0.01,
    paper_id=104,
    seeds=(0,),
)
def geometric_against_uniform(seed: int) -> float:
    return _worst_ratio("uniform")


@claim(
    method="diffusion.exponential-integrator-sde",
    baseline="steps uniform in sqrt t",
    statement=f"With 100 and 200 steps geometric ones leave at most 0.1 times the divergence: {SCALE}.",
    quantity="KL divergence, ratio to steps uniform in sqrt t, the worst of both laws and numbers of steps",
    threshold=0.1,
    paper_id=104,
    seeds=(0,),
)
def geometric_against_quadratic(seed: int) -> float:
    return _worst_ratio("quadratic")


@claim(
    method="diffusion.exponential-integrator-sde",
    baseline="exact law",
    statement=f"On geometric steps the divergence falls at order 1.8 or more, 50 to 400 steps: {SCALE}.",
    quantity="fitted order of the KL divergence in the number of steps, the lower of both laws",
    relation=">=",
    threshold=1.8,
    paper_id=104,
    seeds=(0,),
)
def order_of_divergence(seed: int) -> float:
    counts = (50, 100, 200, 400)
    return min(order_fit([_kl(variance, "geometric", n) for n in counts], counts) for variance in DATA)


@claim(
    method="diffusion.exponential-integrator-sde",
    baseline="the paper's bound, constants 1",
    statement=f"The divergence stays below the bound for d=1, 16, 256 and 50 to 400 steps: {SCALE}.",
    quantity="KL divergence, ratio to the bound, the largest",
    threshold=1.0,
    paper_id=104,
    seeds=(0,),
    note="The bound is an order of magnitude, with a constant that the paper does not give.",
)
def bound_holds(seed: int) -> float:
    ratios = []
    for variance in DATA:
        for d in (1, 16, 256):
            for steps in (50, 100, 200, 400):
                grid = _grid("geometric", steps)
                kl = gaussian_sde_kl([variance] * d, SCHEDULE, grid)
                ratios.append(kl / kl_bound(d, d * variance, T, step_fraction(grid), steps))
    return max(ratios)
