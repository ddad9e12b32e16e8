"""Ready problem: sampling from a Gaussian mixture whose denoiser is exact, so that only the sampler errs."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.sample import RUNGS, sampling
from hasten.core.problem import Problem
from hasten.numerics.mixture import circle
from hasten.numerics.noise import EDM, VE, DiscreteVP, FlowMatching, Schedule, VPCosine, VPLinear

SCHEDULES: dict[str, Schedule] = {
    "vp": VPLinear(),
    "vp-cosine": VPCosine(),
    "ve": VE(),
    "edm": EDM(),
    "flow": FlowMatching(),
    "linear": DiscreteVP.linear(),
    "cosine": DiscreteVP.cosine(),
    "sigmoid": DiscreteVP.sigmoid(),
}


@ready("gaussian-mixture-score", "sample")
def gaussian_mixture_score(
    dim: int = 2, schedule: str = "vp", components: int = 5, batch: int = 256, target: float = 0.05
) -> Problem:
    """Sample a Gaussian mixture with its exact score: RMS error to the exact ODE solution against evaluations.

    Args:
        dim: dimension of the data.
        schedule: `vp` (linear beta), `vp-cosine`, `ve`, `edm`, `flow` (straight paths), or 1000 levels of `linear`,
            `cosine` or `sigmoid` betas.
        components: components of the mixture.
        batch: samples per run.
        target: RMS error that counts as arrived.
    """
    check.one_of("schedule", schedule, tuple(SCHEDULES))
    check.integer("batch", batch, 1)
    levels = SCHEDULES[schedule]
    denoiser = circle(components, dim).denoiser(levels)
    return sampling(
        "gaussian-mixture-score",
        denoiser,
        noise=lambda seed: start(schedule, batch, dim, seed),
        reference=lambda noise: denoiser.solve(noise),
        rungs=RUNGS,
        target=target,
        summary="Gaussian mixture, exact score",
    )


@lru_cache(maxsize=64)
def start(schedule: str, batch: int, dim: int, seed: int) -> Tensor:
    """Start noise of a seed, float64."""
    generator = torch.Generator().manual_seed(seed)
    return SCHEDULES[schedule].noise_scale * torch.randn(batch, dim, dtype=torch.float64, generator=generator)
