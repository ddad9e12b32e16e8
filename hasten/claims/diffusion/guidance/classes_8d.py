"""The experiment that the claims of guidance share: six classes in eight dimensions with their exact scores."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.diffusion.base import sample
from hasten.diffusion.guidance.base import Guidance
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.mixture import classes
from hasten.numerics.noise import VPLinear

POINTS = 256
SCALE = "six classes in 8-d, exact scores, VP, DDIM, grid uniform in sqrt t, 256 points"


class Scene(NamedTuple):
    """Classes drawn for a seed, the conditional denoiser of a batch, and start noise."""

    denoiser: Denoiser
    noise: Tensor
    data: Tensor
    centres: Tensor


@lru_cache(maxsize=8)
def scene(seed: int) -> Scene:
    """Classes, labels, start noise and true draws of a seed."""
    mixture = classes(seed=seed)
    generator = torch.Generator().manual_seed(1000 + seed)
    labels = torch.randint(0, len(mixture.means), (POINTS,), generator=generator)
    noise = torch.randn(POINTS, mixture.dim, dtype=torch.float64, generator=generator)
    data = mixture.sample(POINTS, generator, labels=labels)
    return Scene(mixture.denoiser(VPLinear()).given(labels), noise, data, mixture.means[labels])


def drawn(seed: int, guidance: Guidance, steps: int = 50, costs: dict[str, int] | None = None) -> Tensor:
    """Guided samples."""
    here = scene(seed)
    return sample(here.denoiser, noise=here.noise, sampler="ddim", steps=steps, guidance=guidance, costs=costs)


def norm_excess(seed: int, samples: Tensor) -> float:
    """Mean norm of samples over the mean norm of the classes' true draws, less one."""
    return float(samples.norm(dim=1).mean() / scene(seed).data.norm(dim=1).mean()) - 1.0
