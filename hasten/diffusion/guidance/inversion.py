"""DDIM inversion under guidance: the noise from which a guided chain makes given samples."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.diffusion.guidance.base import Guidance, GuidedDenoiser, levels
from hasten.numerics import time_grid
from hasten.numerics.denoiser import Denoiser


@torch.no_grad()
def guided_invert(
    denoiser: Denoiser,
    samples: Tensor,
    guidance: Guidance,
    steps: int = 50,
    *,
    grid: str | Sequence[float] = "quadratic",
) -> Tensor:
    """Walk guided DDIM backwards, from clean samples to the noise behind them.

    From s to the noisier t, both networks look at `(x, t)`, which gives the guided estimate `x_0` and the noise `eps`
    of `guidance`. The noise that the sampler put on goes, `(x - sigma_s eps)/alpha_s`; the noise that it took away,
    `(x - alpha_t x_0)/sigma_t`, comes at level t. With CFG this is DDIM inversion by the guided noise; CFG++ removes
    the unconditional noise and adds the guided one.

    Args:
        denoiser: the network with its condition.
        samples: clean data at t_min, shape (batch, ...).
        guidance: the rule with which they are to be sampled, one without memory: `CFG` or `CFGPlusPlus`.
        steps: number of steps.
        grid: times of the sampler that will be used, decreasing, or their kind.

    Returns:
        Noise at time T; `sample(denoiser, noise=..., sampler="ddim", guidance=guidance)` leads back. Costs two
        evaluations per step, and an error of first order in the step.

    Example:
        >>> noise = guided_invert(denoiser.given(labels), images, CFGPlusPlus(0.6), steps=50)
    """
    check.integer("steps", steps, 1)
    guided = GuidedDenoiser(denoiser, guidance)
    if guidance.remembers:
        raise InputError(f"{type(guidance).__name__} depends on the steps before, which inversion does not have yet")
    if samples.ndim < 2 or not samples.is_floating_point():
        raise InputError(f"samples must be a real batch of shape (batch, ...), got {tuple(samples.shape)}")
    schedule = guided.schedule
    times = time_grid.make(schedule, steps, grid) if isinstance(grid, str) else time_grid.checked(schedule, grid)
    x = samples
    for s, t in pairwise(times[::-1]):
        x0, eps = guided.split(x, t)
        (alpha_s, sigma_s), (alpha, _) = levels(schedule, x, s), levels(schedule, x, t)
        x = (x - sigma_s * eps) * (alpha / alpha_s) + (x - alpha * x0)
    return x
