"""DDIM: the first-order sampler that all others are measured against."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import Sampler, Step, sampler
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.draws import standard_normal
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

CARD = Card(
    name="ddim",
    family="diffusion",
    title="Denoising Diffusion Implicit Models",
    authors="Song, Meng & Ermon",
    year=2020,
    arxiv="2010.02502",
    summary="Splits the state into clean data and noise, and puts them together again at the next noise level.",
    cost="One evaluation per step, nothing stored.",
    when="As the baseline, with any guidance, and where a model must be sampled without surprises.",
    kinds=("sample",),
    search_space={"grid": Choice("quadratic", "uniform", "logsnr", "karras")},
    use='samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="ddim", steps=20{hyper})',
)


@sampler(CARD)
@dataclass(frozen=True)
class DDIM(Sampler):
    """DDIM, and the whole range from it (`eta=0`) to ancestral sampling (`eta=1`).

    From s to t, with `(x_0, eps)` from one evaluation at s and `v = sigma_t^2 (1 - e^{-2h})`, `h = lam_t - lam_s`:
    `x_t = alpha_t x_0 + sqrt(sigma_t^2 - eta^2 v) eps + eta sqrt(v) z`, z standard normal.
    With `eta=0` this is DPM-Solver of order 1. The last step may end at sigma = 0.

    Args:
        eta: share of fresh noise, in [0, 1].
        grid, steps: see `Sampler`.

    Cost: one evaluation per step. Source: Song, Meng & Ermon (2020), arXiv 2010.02502.
    """

    carries: ClassVar[bool] = True
    eta: float = 0.0
    grid: str | Sequence[float] = field(default="quadratic", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.real("eta", self.eta, 0.0, 1.0)

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        steps: list[Step] = []
        for s, t in pairwise(times):
            sigma = schedule.sigma(t)
            fresh = self.eta * sigma * math.sqrt(-math.expm1(-2.0 * (schedule.lam(t) - schedule.lam(s))))
            steps.append((s, schedule.alpha(t), math.sqrt(sigma**2 - fresh**2), fresh))
        return steps

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        s, alpha, sigma, fresh = state.plan[state.index]
        if isinstance(denoiser, Denoiser):
            x = denoiser.mix(state.x, s, alpha, sigma)
        else:
            x0, eps = denoiser.split(state.x, s)
            x = (x0 * alpha).add_(eps, alpha=sigma)
        return x.add_(standard_normal(x, state.generator), alpha=fresh) if fresh > 0.0 else x
