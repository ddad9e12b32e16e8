"""DDPM: ancestral sampling, the reverse of the noising chain with fresh noise at every step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, ClassVar

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import Sampler, Step, sampler
from hasten.numerics.draws import standard_normal
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

CARD = Card(
    name="ddpm",
    family="diffusion",
    title="Denoising Diffusion Probabilistic Models",
    authors="Ho, Jain & Abbeel",
    year=2020,
    arxiv="2006.11239",
    summary="Draws each state from its law given the noisier state and the estimate of the clean data.",
    cost="One evaluation and one draw of noise per step; hundreds of steps.",
    when="As the baseline of stochastic samplers, where a thousand evaluations are affordable.",
    kinds=("sample",),
    needs=("metric of laws",),
    use='samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="ddpm", steps=100{hyper})',
)


@sampler(CARD)
@dataclass(frozen=True)
class DDPM(Sampler):
    """Ancestral sampling on any schedule.

    From s to t, with `(x_0, eps)` from one evaluation at s and `h = lam_t - lam_s`:
    `x_t = alpha_t x_0 + sigma_t e^{-h} eps + tau z`, z standard normal and `tau = sigma_t sqrt(1 - e^{-2h})`. On
    neighbouring levels of a variance-preserving chain this is the published step
    `(x - beta_s/sigma_s eps)/sqrt(1 - beta_s) + sqrt(sigma_t^2/sigma_s^2 beta_s) z`. It is DDIM with eta=1; noise is
    one standard normal draw per noisy step, in their order.

    Args:
        variance: `small`, the variance above, which is exact for data of no spread, or `large`, with
            `tau = sigma_s sqrt(1 - e^{-2h})` (`beta_s`), exact for standard normal data.
        clip: the estimate of the clean data is cut to [-clip, clip], and the noise changed to fit; None leaves it.
        clean: end with the clean data of one more evaluation, at the last time. The steps of a named grid go down to
            t_min in one step less, so that `steps` evaluations are made in all.
        grid, steps: see `Sampler`. The levels of a discrete chain are `range(999, -1, -1)`.

    Raises:
        InputError: a single step with `clean`.

    Cost: one evaluation per step. Source: Ho, Jain & Abbeel (2020), arXiv 2006.11239.
    """

    carries: ClassVar[bool] = True
    variance: str = "small"
    clip: float | None = None
    clean: bool = True
    grid: str | Sequence[float] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("variance", self.variance, ("small", "large"))
        check.one_of("clean", self.clean, (True, False))
        if self.clip is not None:
            check.positive("clip", self.clip)

    def times(self, schedule: Schedule, nfe: int | None) -> Grid:
        if not isinstance(self.grid, str) or not self._finishes(schedule, schedule.t_min):
            return super().times(schedule, nfe)
        steps = self.step_count(nfe)
        if steps < 2:
            raise InputError(
                f"steps must be at least 2 with clean=True (a step to t_min and one to clean data), got {steps}"
            )
        return self.changed(steps=steps - 1, clean=False).times(schedule, None)

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        steps: list[Step] = []
        for s, t in pairwise(times):
            h = schedule.lam(t) - schedule.lam(s)
            level = schedule.sigma(s if self.variance == "large" and schedule.sigma(t) > 0.0 else t)
            fresh = level * math.sqrt(-math.expm1(-2.0 * h))
            steps.append((s, schedule.alpha(t), schedule.sigma(t) * math.exp(-h), fresh, 1.0 / schedule.rho(s)))
        if self._finishes(schedule, times[-1]):
            steps.append((times[-1], 1.0, 0.0, 0.0, 1.0 / schedule.rho(times[-1])))
        return steps

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        s, alpha, kept, fresh, ratio = state.plan[state.index]
        x0, eps = denoiser.split(state.x, s)
        if self.clip is not None:
            free, x0 = x0, x0.clamp(-self.clip, self.clip)
            eps = eps + ratio * (free - x0)
        x = (x0 * alpha).add_(eps, alpha=kept)
        return x.add_(standard_normal(x, state.generator), alpha=fresh) if fresh > 0.0 else x

    def _finishes(self, schedule: Schedule, last: float) -> bool:
        return self.clean and schedule.sigma(last) > 0.0
