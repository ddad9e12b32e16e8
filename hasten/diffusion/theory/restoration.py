"""Sampling by restoration and degradation: DDIM for blur, masks and any other corruption of data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import Sampler, Step, sampler
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

Corruption = Callable[[Tensor, float], Tensor]
Restoration = Callable[[Tensor, float], Tensor]

CARD = Card(
    name="restoration-degradation",
    family="diffusion",
    title="Restoration-Degradation Beyond Linear Diffusions: A Non-Asymptotic Analysis For DDIM-Type Samplers",
    authors="Chen, Daras & Dimakis",
    year=2023,
    arxiv="2303.03384",
    paper_id=281,
    summary="Restores clean data, corrupts them again a little less, with noise that points at the present state.",
    cost="One evaluation and two corruptions per step, nothing stored.",
    when="For models trained to undo blur, masks or any other corruption; for plain noise it is DDIM.",
    kinds=("sample",),
    search_space={"grid": Choice("quadratic", "uniform", "logsnr", "karras")},
    use='samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="restoration-degradation", steps=20{hyper})',
)


@sampler(CARD)
@dataclass(frozen=True)
class RestorationDegradation(Sampler):
    """Deterministic sampling for states `x_t = A_t(x_0) + sigma_t z` with any corruption A_t.

    A step from s to t: restore `x_0 = E[x_0 | x_s]`; read off the noise that leads to the present state,
    `z = (x_s - A_s(x_0))/sigma_s`; degrade less, `x_t = A_t(x_0) + sigma_t z`. With `A_t = alpha_t` this is DDIM.

    Args:
        corrupt: `A_t(x_0)` as a function of clean data and time; the schedule's `alpha_t x_0` if not given.
        restore: expected clean data as a function of state and time; the denoiser's `x0` if not given.
        noise: `aimed` as above. `fresh` draws z anew and `none` leaves it out: these do not converge to the data's
            law, however many steps are taken, and are here for comparison.
        grid, steps: see `Sampler`. sigma_t is the schedule's.

    Cost: one evaluation and two corruptions per step. Source: Chen, Daras & Dimakis (2023), arXiv 2303.03384.
    """

    corrupt: Corruption | None = None
    restore: Restoration | None = None
    noise: str = "aimed"

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("noise", self.noise, ("aimed", "fresh", "none"))
        for name, function in (("corrupt", self.corrupt), ("restore", self.restore)):
            if function is not None and not callable(function):
                raise InputError(f"{name} must be a function of a batch and a time, got {function!r}")

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        if schedule.sigma(times[-2]) == 0.0:
            raise InputError(f"the grid reaches sigma=0 at t={times[-2]:g}, before its last step, which divides by it")
        return [
            (s, t, schedule.alpha(s), schedule.alpha(t), schedule.sigma(s), schedule.sigma(t))
            for s, t in pairwise(times)
        ]

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        s, t, alpha_s, alpha_t, sigma_s, sigma_t = state.plan[state.index]
        x = state.x
        clean = denoiser.x0(x, s) if self.restore is None else self.restore(x, s)
        end = self._corrupted(clean, t, alpha_t)
        if self.noise == "none":
            return end
        if self.noise == "fresh":
            return end + sigma_t * standard_normal(x, state.generator)
        return end + (sigma_t / sigma_s) * (x - self._corrupted(clean, s, alpha_s))

    def _corrupted(self, clean: Tensor, t: float, alpha: float) -> Tensor:
        if self.corrupt is None:
            return clean * alpha
        corrupted = self.corrupt(clean, t)
        if corrupted.shape != clean.shape:
            raise InputError(
                f"corrupt must keep the shape {tuple(clean.shape)}, got {tuple(corrupted.shape)} at t={t:.4g}"
            )
        return corrupted
