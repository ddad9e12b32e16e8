"""Ready problem: the noise behind draws of a Gaussian mixture whose denoiser is exact, so that only the method errs."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.invert import Inversion
from hasten.core.problem import Problem
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rk4_lambda, rms
from hasten.problems.gaussian_mixture import SCHEDULES

RUNGS = (8, 16, 32, 64, 128, 256)


@ready("gaussian-mixture-inversion", "invert")
def gaussian_mixture_inversion(
    dim: int = 2, schedule: str = "vp", components: int = 5, batch: int = 64, target: float = 0.02
) -> Problem:
    """Find the noise of draws of a Gaussian mixture: distance of what the exact flow makes of it against evaluations.

    Args:
        dim: dimension of the data.
        schedule: `vp` (linear beta), `ve` or `flow` (straight paths).
        components: components of the mixture.
        batch: draws per run.
        target: RMS distance that counts as arrived.
    """
    check.one_of("schedule", schedule, tuple(SCHEDULES))
    check.integer("batch", batch, 1)
    mixture = circle(components, dim)
    denoiser = mixture.denoiser(SCHEDULES[schedule])

    def build(seed: int) -> Inversion:
        clean = mixture.sample(batch, torch.Generator().manual_seed(seed))

        def distance(noise: Tensor) -> float:
            return rms(rk4_lambda(denoiser, noise, steps=200), clean)

        return Inversion(denoiser, clean, distance, RUNGS)

    return Problem(
        name="gaussian-mixture-inversion",
        kind=Inversion.kind,
        build=build,
        measures="RMS distance of the exact flow from the noise to the data",
        target=target,
        budget=RUNGS[-1],
        cost="calls",
        baseline="diffusion.ddim-inversion",
        summary="Noise of draws of a Gaussian mixture, exact score",
    )
