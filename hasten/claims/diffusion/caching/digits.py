"""The experiment that the caches' claims share: digits drawn in 50 Euler steps of a flow, in full and with a cache."""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.core.registry import entry
from hasten.diffusion.base import sample
from hasten.diffusion.samplers.ddim import DDIM
from hasten.problems.digits_diffusion import digits_denoiser

STEPS = 50
SCALE = "8x8 digits by class, flow transformer of 6 blocks, 50 Euler steps, 64 samples per seed"


class Drawn(NamedTuple):
    """What a cached run gave: distance to the run in full (root mean square per pixel), full passes, numbers stored."""

    error: float
    passes: int
    stored: int


@cache
def drawn(seed: int, steps: int = STEPS) -> Tensor:
    """Samples in this many Euler steps, all in full."""
    return _sample(seed, steps, None)


@cache
def cached(seed: int, name: str, **options: Any) -> Drawn:
    """A run with the cache of this name."""
    made = entry(f"diffusion.{name}").target(**options)
    return Drawn(_distance(_sample(seed, STEPS, made), seed), made.full, made.stored)


@cache
def plain(seed: int, steps: int) -> float:
    """Distance of fewer steps without a cache to the run in full."""
    return _distance(drawn(seed, steps), seed)


def _sample(seed: int, steps: int, store: Any) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(0, 10, (64,), generator=generator)
    denoiser = _denoiser().given(labels)
    noise = denoiser.schedule.noise_scale * torch.randn(64, 1, 8, 8, generator=generator)
    return sample(denoiser, noise=noise, sampler=DDIM(grid="uniform"), steps=steps, cache=store)


def _distance(x: Tensor, seed: int) -> float:
    return float((x - drawn(seed)).square().mean().sqrt())


_denoiser = cache(digits_denoiser)
