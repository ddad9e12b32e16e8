"""Ready problem: drawing handwritten digits with a small trained diffusion transformer."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.sample import sampling
from hasten.core.picture import tiles
from hasten.core.problem import Problem
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import FlowMatching
from hasten.problems.networks import network

SOLVERS = (
    "diffusion.ddim", "diffusion.dpm-solver-2", "diffusion.dpm-solver-3", "diffusion.dpmpp-2m", "diffusion.deis",
    "diffusion.bdia", "diffusion.paradigms",
)  # fmt: skip
"""Who races by default to draw pictures."""


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

    def start(seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, 10, (batch,), generator=generator)
        return labels, FlowMatching().noise_scale * torch.randn(batch, 1, 8, 8, generator=generator)

    return sampling(
        "digits-diffusion",
        lambda seed: digits_denoiser().given(start(seed)[0]),
        noise=lambda seed: start(seed)[1],
        exact_steps=100,
        picture=tiles,
        target=target,
        contenders=(*SOLVERS, "diffusion.fora", "diffusion.taylorseer"),
        summary="8x8 digits by class, transformer of 6 blocks trained as a flow",
    )
