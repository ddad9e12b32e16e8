"""Ready problem: sampling given classes with a network that half ignores its condition, as guidance corrects."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.sample import Sampling
from hasten.core.problem import Problem
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.mixture import classes
from hasten.numerics.noise import VPLinear
from hasten.numerics.reference import rms

RUNGS = (8, 12, 16, 24, 32, 48, 64, 96, 128)


@ready("gaussian-mixture-classes", "sample")
def gaussian_mixture_classes(
    attention: float = 0.5, components: int = 6, dim: int = 8, batch: int = 128, target: float = 0.1
) -> Problem:
    """Sample given classes of a mixture with a network that half ignores the label: RMS error to exact samples.

    The network predicts `eps_u + attention (eps_c - eps_u)` from the exact predictions, so that plain guidance at the
    scale `1/attention` makes it exact.

    Args:
        attention: share of the difference that the label makes which the network has learnt, in (0, 1].
        components: classes of the mixture.
        dim: dimension of the data.
        batch: samples per run.
        target: RMS error that counts as arrived.
    """
    check.real("attention", attention, 0.0, 1.0, open_low=True)
    check.integer("batch", batch, 1)
    mixture, schedule = classes(components, dim), VPLinear()
    exact = mixture.denoiser(schedule)

    def network(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        blind = exact.eps(x, t)
        return blind if cond is None else torch.lerp(blind, exact.given(cond).eps(x, t), attention)

    def build(seed: int) -> Sampling:
        generator = torch.Generator().manual_seed(seed)
        labels = torch.randint(0, components, (batch,), generator=generator)
        noise = torch.randn(batch, dim, dtype=torch.float64, generator=generator)
        wanted: list[Tensor] = []

        def distance(x: Tensor) -> float:
            if not wanted:
                wanted.append(exact.given(labels).solve(noise))
            return rms(x, wanted[0])

        return Sampling(Denoiser(network, schedule).given(labels), noise, distance, RUNGS)

    return Problem(
        name="gaussian-mixture-classes",
        kind=Sampling.kind,
        build=build,
        measures="RMS distance to the exact samples of the class",
        target=target,
        budget=RUNGS[-1],
        cost="calls",
        baseline="diffusion.cfg",
        summary="Classes of a Gaussian mixture, network that half ignores the label",
    )
