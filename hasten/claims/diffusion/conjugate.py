"""Claims of conjugate integrators."""

from __future__ import annotations

import torch

from hasten.claims.diffusion.mixture_2d import DENOISER, error, start_and_exact
from hasten.core.claim import claim
from hasten.diffusion.base import sample
from hasten.diffusion.samplers.conjugate import ConjugateIntegrator

SCALE = "five-component mixture in 2-d, exact score, VP, grid uniform in sqrt t, 256 points"
NOTE = "The paper tunes lam for FID on trained networks; here the score is exact and only the solver's error is seen."


@claim(
    method="diffusion.conjugate",
    baseline="diffusion.ddim",
    statement="With lam=0 the conjugate integrator is DDIM: mixture in 2-d, 5 steps.",
    quantity="largest difference to DDIM's samples",
    threshold=1e-10,
    paper_id=287,
    aggregate="max",
)
def zero_is_ddim(seed: int) -> float:
    noise, _ = start_and_exact(seed)
    zero = sample(DENOISER, noise=noise, sampler=ConjugateIntegrator(), steps=5)
    return float((zero - sample(DENOISER, noise=noise, sampler="ddim", steps=5, grid="quadratic")).abs().max())


@claim(
    method="diffusion.conjugate",
    baseline="diffusion.ddim",
    statement=f"At 5 evaluations lam=1 and lam=-1 are both worse than lam=0: {SCALE}.",
    quantity="smaller RMS error of lam=1 and lam=-1, ratio to lam=0",
    relation=">=",
    threshold=1.0,
    paper_id=287,
    aggregate="min",
    note=NOTE,
)
def large_lam_is_worse(seed: int) -> float:
    far = min(error(seed, ConjugateIntegrator(lam), 5) for lam in (-1.0, 1.0))
    return far / error(seed, ConjugateIntegrator(), 5)


@claim(
    method="diffusion.conjugate",
    baseline="diffusion.ddim",
    statement=f"The lam found on 100 other points is never worse than lam=0 at 5 evaluations: {SCALE}.",
    quantity="RMS error with the lam found, ratio to lam=0",
    threshold=1.0,
    paper_id=287,
    aggregate="max",
    note=NOTE,
)
def searched_lam_is_no_worse(seed: int) -> float:
    noise = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1000 + seed))
    found = ConjugateIntegrator().search(DENOISER, noise, steps=5)
    return error(seed, found, 5) / error(seed, ConjugateIntegrator(), 5)
