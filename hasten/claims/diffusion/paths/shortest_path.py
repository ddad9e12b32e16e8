"""Claims of shortest-path diffusion, on the spectrum of handwritten digits with exact Gaussian networks."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from hasten.core.claim import claim
from hasten.diffusion.paths.shortest_path import MOST, ShortestPathSchedule, fisher_length, spectral_kl
from hasten.numerics.noise import Schedule, VPCosine, VPLinear
from hasten.problems.digits import digits

LINEAR, COSINE = VPLinear(), VPCosine()
SCALE = "spectrum of the 8x8 digits, centred, scaled to a largest power of 20"
NOTE = "The paper's own figures are FIDs on CIFAR-10; here the network is exact, for Gaussian data."


@lru_cache(maxsize=1)
def _path() -> ShortestPathSchedule:
    spectrum = torch.tensor(ShortestPathSchedule.fit(digits()[0].reshape(-1, 8, 8)).spectrum, dtype=torch.float64)
    return ShortestPathSchedule(spectrum * (20.0 / spectrum.max()))


def _shared(schedule: Schedule, steps: int) -> Tensor:
    """`alpha_bar` of one schedule for all frequencies on a uniform grid over [0, 1], steps clipped like the path's."""
    t = torch.arange(steps, -1, -1, dtype=torch.float64) / steps
    squares = schedule.alpha(t.clamp(max=1.0 - 1e-9)) ** 2
    kept = (squares[:-1] / squares[1:]).clamp(min=1.0 - MOST).flip(0).cumprod(0).flip(0)
    return torch.cat((kept, torch.ones(1, dtype=torch.float64)))[:, None, None]


@lru_cache(maxsize=64)
def _kl(schedule: Schedule | None, steps: int) -> float:
    """Divergence of ancestral sampling on the path, or on one schedule for all frequencies."""
    grid = [i / steps for i in range(steps, -1, -1)]
    levels = _path().levels(grid) if schedule is None else _shared(schedule, steps)
    return spectral_kl(levels, _path().spectrum)


@claim(
    method="diffusion.shortest-path",
    baseline="geodesic distance",
    statement=f"The path is as long as the geodesic, sqrt(1/2 sum log^2 S_k), to 1e-3: {SCALE}.",
    quantity="relative difference of lengths",
    threshold=1e-3,
    paper_id=344,
    seeds=(0,),
    note=NOTE,
)
def length_is_the_geodesic(seed: int) -> float:
    spectrum = torch.tensor(_path().spectrum, dtype=torch.float64)
    geodesic = math.sqrt(float(0.5 * spectrum.log().square().sum()))
    return abs(fisher_length(_path(), spectrum) / geodesic - 1.0)


@claim(
    method="diffusion.shortest-path",
    baseline="linear and cosine schedules",
    statement=f"The path is shorter than those of the linear and the cosine schedule: {SCALE}.",
    quantity="Fisher length, ratio to the shorter of the linear and the cosine schedule's",
    threshold=1.0,
    paper_id=344,
    seeds=(0,),
    note=NOTE,
)
def length_against_schedules(seed: int) -> float:
    spectrum = _path().spectrum
    others = (VPLinear(t_min=1e-6), VPCosine(t_min=1e-6, T=0.9999))
    return fisher_length(_path(), spectrum) / min(fisher_length(other, spectrum) for other in others)


@claim(
    method="diffusion.shortest-path",
    baseline="linear schedule",
    statement=f"With 20, 50 and 100 ancestral steps, at most 0.55 times the linear schedule's divergence: {SCALE}.",
    quantity="KL divergence, ratio to the linear schedule, the worst of 20, 50 and 100 steps",
    threshold=0.55,
    paper_id=344,
    seeds=(0,),
    note=NOTE,
)
def divergence_against_linear(seed: int) -> float:
    return max(_kl(None, steps) / _kl(LINEAR, steps) for steps in (20, 50, 100))


@claim(
    method="diffusion.shortest-path",
    baseline="cosine schedule",
    statement=f"With 20 and 50 ancestral steps, at most 0.8 times the cosine schedule's divergence: {SCALE}.",
    quantity="KL divergence, ratio to the cosine schedule, the worse of 20 and 50 steps",
    threshold=0.8,
    paper_id=344,
    seeds=(0,),
    note=NOTE + " The advantage over the cosine schedule ends at about a thousand steps.",
)
def divergence_against_cosine(seed: int) -> float:
    return max(_kl(None, steps) / _kl(COSINE, steps) for steps in (20, 50))
