"""Ready problem: drawing small natural pictures with a trained U-Net."""

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
from hasten.numerics.noise import VPLinear
from hasten.numerics.reference import rms
from hasten.problems.digits_diffusion import FIELD
from hasten.problems.networks import network

SHAPE = (3, 16, 16)


def cifar10_denoiser() -> Denoiser:
    """Noise prediction for CIFAR-10 pictures of shape (3, 16, 16) in [-1, 1], without classes.

    The network is trained at the first call on a machine, in a few minutes.
    """
    return Denoiser(network("cifar10-diffusion"), VPLinear(), "epsilon")


@ready("cifar10-diffusion", "sample")
def cifar10_diffusion(batch: int = 16, target: float = 0.5) -> Problem:
    """Draw 16x16 CIFAR-10 pictures with a small trained U-Net: RMS error to the exact ODE solution.

    Args:
        batch: pictures per run.
        target: RMS error (Euclidean, per picture) that counts as arrived; a picture has a norm of about 14.
    """
    check.integer("batch", batch, 1)

    def build(seed: int) -> Sampling:
        def distance(x: Tensor) -> float:
            return rms(x.double(), _exact(seed, batch))

        return Sampling(cifar10_denoiser(), _noise(seed, batch), distance, RUNGS, tiles)

    return Problem(
        name="cifar10-diffusion",
        kind=Sampling.kind,
        build=build,
        measures="RMS distance to the exact samples",
        target=target,
        budget=RUNGS[-1],
        cost="calls",
        baseline="diffusion.ddim",
        contenders=FIELD,
        summary="16x16 CIFAR-10 pictures, U-Net of three levels",
    )


@cache
def _noise(seed: int, batch: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return VPLinear().noise_scale * torch.randn(batch, *SHAPE, generator=generator)


@cache
def _exact(seed: int, batch: int) -> Tensor:
    """Solution of the probability-flow ODE from the seed's noise; its 240 evaluations are made in float32."""
    net = network("cifar10-diffusion")
    return Denoiser(lambda x, t: net(x.float(), t.float()).to(x), VPLinear()).solve(_noise(seed, batch), steps=60)
