"""Claims of DEIS."""

from __future__ import annotations

from hasten.claims.diffusion.mixture_2d import DENOISER, error, order, start_and_exact
from hasten.core.claim import claim
from hasten.diffusion.base import sample

SCALE = "five-component mixture in 2-d, exact score, VP, grid uniform in sqrt t, 48 to 192 steps, 256 points"
STEPS = (48, 96, 192)
NOTE = (
    "The paper's own figures are FIDs on CIFAR-10 (4.17 at 10 evaluations, 3.37 at 15); here the score is exact, so "
    "that only the solver's error is seen."
)


@claim(
    method="diffusion.deis",
    baseline="exact ODE solution",
    statement=f"tAB-DEIS with one past evaluation converges at order 1.85 or more: {SCALE}.",
    quantity="fitted order of convergence, order=1",
    relation=">=",
    threshold=1.85,
    paper_id=191,
    note=NOTE,
)
def order_with_one_past(seed: int) -> float:
    return order(seed, "deis", STEPS, order=1)


@claim(
    method="diffusion.deis",
    baseline="exact ODE solution",
    statement=f"tAB-DEIS with two past evaluations converges at order 2.6 or more: {SCALE}.",
    quantity="fitted order of convergence, order=2",
    relation=">=",
    threshold=2.6,
    paper_id=191,
    note=NOTE,
)
def order_with_two_past(seed: int) -> float:
    return order(seed, "deis", STEPS, order=2)


@claim(
    method="diffusion.deis",
    baseline="exact ODE solution",
    statement=f"tAB-DEIS with three past evaluations converges at order 3.3 or more: {SCALE}.",
    quantity="fitted order of convergence, order=3",
    relation=">=",
    threshold=3.3,
    paper_id=191,
    note=NOTE,
)
def order_with_three_past(seed: int) -> float:
    return order(seed, "deis", STEPS, order=3)


@claim(
    method="diffusion.deis",
    baseline="diffusion.ddim",
    statement="With 12 evaluations tAB-DEIS (order=3) has at most 0.35 times DDIM's error: mixture in 2-d.",
    quantity="RMS error, ratio to DDIM at 12 evaluations",
    threshold=0.35,
    paper_id=191,
    note=NOTE,
)
def error_at_12_evaluations(seed: int) -> float:
    return error(seed, "deis", 12, order=3) / error(seed, "ddim", 12, grid="quadratic")


@claim(
    method="diffusion.deis",
    baseline="diffusion.ddim",
    statement="Without past evaluations (order=0) DEIS is DDIM: mixture in 2-d, 12 steps.",
    quantity="largest difference to DDIM's samples",
    threshold=1e-6,
    paper_id=191,
    aggregate="max",
)
def order_zero_is_ddim(seed: int) -> float:
    noise, _ = start_and_exact(seed)
    deis = sample(DENOISER, noise=noise, sampler="deis", steps=12, order=0)
    return float((deis - sample(DENOISER, noise=noise, sampler="ddim", steps=12, grid="quadratic")).abs().max())
