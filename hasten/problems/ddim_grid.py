"""Ready problem: the times at which DDIM evaluates an exact network, few of many."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.choose import Choice, Choosing
from hasten.core.problem import Problem
from hasten.numerics import time_grid
from hasten.numerics.mixture import circle
from hasten.numerics.noise import VPLinear
from hasten.numerics.reference import rms


@ready("ddim-grid", "choose")
def ddim_grid(steps: int = 6, candidates: int = 100, batch: int = 128, target: float | None = None) -> Problem:
    """Choose the times of DDIM's steps on a Gaussian mixture: error of the samples against grids tried.

    Args:
        steps: steps of the grid.
        candidates: times to choose from, uniform in t.
        batch: samples that a grid is scored on; the metric takes as many others.
        target: RMS error that counts as arrived.
    """
    check.integer("steps", steps, 2)
    check.integer("candidates", candidates, steps + 2)
    schedule = VPLinear()
    denoiser = circle().denoiser(schedule)
    times = time_grid.uniform(schedule, candidates - 1)

    def ddim(choice: Choice, noise: Tensor) -> Tensor:
        x, now = noise, times[0]
        for then in (*(times[i + 1] for i in choice), times[-1]):
            x0, eps = denoiser.split(x, now)
            x, now = schedule.alpha(then) * x0 + schedule.sigma(then) * eps, then
        return x

    def build(seed: int) -> Choosing:
        generator = torch.Generator().manual_seed(seed)
        seen, fresh = torch.randn(2, batch, 2, dtype=torch.float64, generator=generator)
        goals = [denoiser.solve(noise) for noise in (seen, fresh)]
        return Choosing(
            lambda x: rms(ddim(x, seen), goals[0]),
            steps - 1,
            candidates - 2,
            metric=lambda x: rms(ddim(x, fresh), goals[1]),
        )

    return Problem(
        name="ddim-grid",
        kind=Choosing.kind,
        build=build,
        measures="RMS distance to the exact samples, on fresh noise",
        target=target,
        budget=170,
        every=10,
        cost="calls",
        baseline="diffusion.random-choice",
        summary="Times of DDIM's steps, exact score",
    )
