"""Ready problem: drawing handwritten digits with a small trained diffusion transformer."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.sample import RUNGS, Sampling
from hasten.core.picture import tiles
from hasten.core.problem import Problem
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import FlowMatching
from hasten.numerics.reference import rms
from hasten.problems.networks import network

FIELD = (
    "diffusion.ddim", "diffusion.dpm-solver-2", "diffusion.dpm-solver-3", "diffusion.dpmpp-2m", "diffusion.deis",
    "diffusion.dualfast", "diffusion.paradigms", "diffusion.fora", "diffusion.taylorseer",
)  # fmt: skip


def digits_denoiser() -> Denoiser:
    """Class-conditional flow on digits of shape (1, 8, 8) in [-1, 1]; `.given(labels)`, and label 10 stands for none.

    The network is trained at the first call on a machine, in a few minutes.
    """
    return Denoiser(network("digits-diffusion"), FlowMatching(), "velocity", null=10)


@ready("digits-diffusion", "sample")
def digits_diffusion(batch: int = 64, target: float = 0.1) -> Problem:
    """Draw 8x8 digits of given classes with a small trained transformer: RMS error to the exact ODE solution.

    Args:
        batch: images per run.
        target: RMS error (Euclidean, per image) that counts as arrived; an image has a norm of about 6.
    """
    check.integer("batch", batch, 1)

    def build(seed: int) -> Sampling:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 10, (batch,), generator=generator)
        denoiser = digits_denoiser().given(labels)
        noise = denoiser.schedule.noise_scale * torch.randn(batch, 1, 8, 8, generator=generator)
        return Sampling(denoiser, noise, lambda x: rms(x, _exact(seed, batch)), RUNGS, tiles)

    return Problem(
        name="digits-diffusion",
        kind=Sampling.kind,
        build=build,
        measures="RMS distance to the exact samples",
        target=target,
        budget=RUNGS[-1],
        cost="calls",
        baseline="diffusion.ddim",
        contenders=FIELD,
        summary="8x8 digits by class, transformer of 6 blocks trained as a flow",
    )


@cache
def _exact(seed: int, batch: int) -> Tensor:
    """Solution of the probability-flow ODE from the seed's noise, in float64."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (batch,), generator=generator)
    noise = torch.randn(batch, 1, 8, 8, generator=generator).double()
    denoiser = Denoiser(network("digits-diffusion").double(), FlowMatching(), "velocity").given(labels)
    return denoiser.solve(denoiser.schedule.noise_scale * noise, steps=100)
