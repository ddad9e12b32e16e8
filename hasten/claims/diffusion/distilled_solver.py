"""Claims of D-ODE solvers."""

from __future__ import annotations

import torch

from hasten.claims.diffusion.mixture_2d import DENOISER, error, start_and_exact
from hasten.core.claim import claim
from hasten.diffusion.base import sample
from hasten.diffusion.samplers.distilled_solver import DODE

SCALE = "five-component mixture in 2-d, exact score, VP, grid uniform in sqrt t, fitted on 100 points, tested on 256"
NOTE = "The paper's own figures are FIDs of trained networks; here the score is exact and only the solver's error seen."


def _ratio(seed: int, steps: int) -> float:
    generator = torch.Generator().manual_seed(1000 + seed)
    noise = torch.randn(100, 2, dtype=torch.float64, generator=generator)
    solver = DODE().fit(DENOISER, noise, teacher_substeps=10, steps=steps)
    return error(seed, solver, steps) / error(seed, "ddim", steps, grid="quadratic")


@claim(
    method="diffusion.d-ode",
    baseline="diffusion.ddim",
    statement=f"With 5 steps the fitted solver has at most half of DDIM's error: {SCALE}.",
    quantity="RMS error, ratio to DDIM with 5 steps",
    threshold=0.5,
    paper_id=327,
    note=NOTE,
)
def error_with_5_steps(seed: int) -> float:
    return _ratio(seed, 5)


@claim(
    method="diffusion.d-ode",
    baseline="diffusion.ddim",
    statement=f"With 8 steps the fitted solver has at most half of DDIM's error: {SCALE}.",
    quantity="RMS error, ratio to DDIM with 8 steps",
    threshold=0.5,
    paper_id=327,
    note=NOTE,
)
def error_with_8_steps(seed: int) -> float:
    return _ratio(seed, 8)


@claim(
    method="diffusion.d-ode",
    baseline="diffusion.ddim",
    statement=f"With 10 steps the fitted solver has at most half of DDIM's error: {SCALE}.",
    quantity="RMS error, ratio to DDIM with 10 steps",
    threshold=0.5,
    paper_id=327,
    note=NOTE,
)
def error_with_10_steps(seed: int) -> float:
    return _ratio(seed, 10)


@claim(
    method="diffusion.d-ode",
    baseline="diffusion.ddim",
    statement=f"With 20 steps the fitted solver has at most half of DDIM's error: {SCALE}.",
    quantity="RMS error, ratio to DDIM with 20 steps",
    threshold=0.5,
    paper_id=327,
    note=NOTE,
)
def error_with_20_steps(seed: int) -> float:
    return _ratio(seed, 20)


@claim(
    method="diffusion.d-ode",
    baseline="diffusion.ddim",
    statement="With all lambdas zero the samples are DDIM's: mixture in 2-d, 10 steps.",
    quantity="largest difference to DDIM's samples",
    threshold=1e-10,
    paper_id=327,
    aggregate="max",
)
def zero_is_ddim(seed: int) -> float:
    noise, _ = start_and_exact(seed)
    zero = sample(DENOISER, noise=noise, sampler=DODE(lambdas=[0.0] * 10), steps=10)
    return float((zero - sample(DENOISER, noise=noise, sampler="ddim", steps=10, grid="quadratic")).abs().max())
