"""The experiment that the samplers' claims share: a five-component mixture in two dimensions with its exact score."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hasten.diffusion.base import Sampler, sample
from hasten.numerics.mixture import circle
from hasten.numerics.noise import VPLinear
from hasten.numerics.reference import order_fit, rk4_lambda, rms

DENOISER = circle().denoiser(VPLinear())
POINTS = 256


@lru_cache(maxsize=8)
def start_and_exact(seed: int) -> tuple[Tensor, Tensor]:
    """Start noise of a seed and the exact ODE solution from it (Runge-Kutta 4 in lam, 4000 steps, float64)."""
    noise = torch.randn(POINTS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise, rk4_lambda(DENOISER, noise, steps=4000)


def error(seed: int, sampler: str | Sampler, steps: int, **hyper: Any) -> float:
    """RMS distance of the samples to the exact solution."""
    noise, exact = start_and_exact(seed)
    return rms(sample(DENOISER, noise=noise, sampler=sampler, steps=steps, **hyper), exact)


def order(seed: int, sampler: str | Sampler, steps: Sequence[int] = (24, 48, 96, 192), **hyper: Any) -> float:
    """Fitted order of convergence over these numbers of steps."""
    return order_fit([error(seed, sampler, count, **hyper) for count in steps], steps)
