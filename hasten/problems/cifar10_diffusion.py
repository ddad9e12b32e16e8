"""Ready problem: drawing small natural pictures with a trained U-Net."""

from __future__ import annotations

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.sample import sampling
from hasten.core.picture import tiles
from hasten.core.problem import Problem
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import VPLinear
from hasten.problems.digits_diffusion import SOLVERS
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
    return sampling(
        "cifar10-diffusion",
        lambda seed: cifar10_denoiser(),
        (batch, *SHAPE),
        exact_steps=60,
        picture=tiles,
        target=target,
        contenders=SOLVERS,
        summary="16x16 CIFAR-10 pictures, U-Net of three levels",
    )
