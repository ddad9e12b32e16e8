"""The experiment that the claims on inversions share: draws of the five-component mixture, to noise and back."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hasten.claims.diffusion.mixture_2d import POINTS
from hasten.diffusion.base import sample
from hasten.diffusion.inversion.base import invert
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rms


def data(seed: int) -> Tensor:
    """Draws of the mixture, float64."""
    return circle().sample(POINTS, torch.Generator().manual_seed(seed))


def round_trip(seed: int, denoiser: Denoiser, method: Any, steps: int, grid: str, **hyper: Any) -> float:
    """RMS distance of the data to what DDIM makes of the inverted noise on the same grid."""
    x0 = data(seed)
    noise = invert(denoiser, x0, steps, method, grid=grid, **hyper)
    return rms(sample(denoiser, noise=noise, sampler="ddim", steps=steps, grid=grid), x0)
