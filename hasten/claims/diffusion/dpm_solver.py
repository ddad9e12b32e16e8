"""Claims of DPM-Solver."""

from __future__ import annotations

from hasten.claims.diffusion.mixture_2d import error, order
from hasten.core.claim import claim
from hasten.diffusion.samplers.dpm_solver import DPMSolver

SCALE = "five-component mixture in 2-d, exact score, VP, grid uniform in sqrt t, 24 to 192 steps, 256 points"
NOTE = (
    "The paper's own figures are FIDs on CIFAR-10 (4.70 at 10 evaluations, 2.87 at 20); here the score is exact, so "
    "that only the solver's error is seen."
)


@claim(
    method="diffusion.dpm-solver-2",
    baseline="exact ODE solution",
    statement=f"DPM-Solver of order 1 (DDIM) converges at order 1: {SCALE}.",
    quantity="fitted order of convergence, order 1",
    relation="in",
    threshold=(0.9, 1.1),
    paper_id=92,
    note=NOTE,
)
def order_one(seed: int) -> float:
    return order(seed, DPMSolver(order=1, grid="quadratic"))


@claim(
    method="diffusion.dpm-solver-2",
    baseline="exact ODE solution",
    statement=f"DPM-Solver-2 converges at order 2: {SCALE}.",
    quantity="fitted order of convergence",
    relation="in",
    threshold=(1.9, 2.1),
    paper_id=92,
    note=NOTE,
)
def order_two(seed: int) -> float:
    return order(seed, "dpm-solver-2", grid="quadratic")


@claim(
    method="diffusion.dpm-solver-3",
    baseline="exact ODE solution",
    statement=f"DPM-Solver-3 converges at order 3: {SCALE}.",
    quantity="fitted order of convergence",
    relation="in",
    threshold=(2.6, 3.1),
    paper_id=92,
    note=NOTE,
)
def order_three(seed: int) -> float:
    return order(seed, "dpm-solver-3", grid="quadratic")


@claim(
    method="diffusion.dpmpp-2m",
    baseline="exact ODE solution",
    statement=f"DPM-Solver++(2M) converges at order 2: {SCALE}.",
    quantity="fitted order of convergence",
    relation="in",
    threshold=(1.85, 2.1),
    note=NOTE,
)
def order_two_multistep(seed: int) -> float:
    return order(seed, "dpmpp-2m", grid="quadratic")


@claim(
    method="diffusion.dpm-solver-2",
    baseline="diffusion.ddim",
    statement="At 24 evaluations DPM-Solver-2 (12 steps) has at most 0.4 times DDIM's error (24 steps): 2-d mixture.",
    quantity="RMS error, ratio to DDIM at 24 evaluations",
    threshold=0.4,
    paper_id=92,
    note=NOTE,
)
def error_at_24_evaluations(seed: int) -> float:
    return error(seed, "dpm-solver-2", 12, grid="quadratic") / error(seed, "ddim", 24, grid="quadratic")


@claim(
    method="diffusion.dpm-solver-3",
    baseline="diffusion.ddim",
    statement="At 36 evaluations DPM-Solver-3 (12 steps) has at most 0.05 times DDIM's error (36 steps): 2-d mixture.",
    quantity="RMS error, ratio to DDIM at 36 evaluations",
    threshold=0.05,
    paper_id=92,
    note=NOTE,
)
def error_at_36_evaluations(seed: int) -> float:
    return error(seed, "dpm-solver-3", 12, grid="quadratic") / error(seed, "ddim", 36, grid="quadratic")
