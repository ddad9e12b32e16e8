"""Splitting integrators for phase-space diffusion: position and momentum take their steps in turn."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.errors import InputError
from hasten.diffusion.base import Sampler, Step, sampler
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.numerics import time_grid
from hasten.numerics.phase_space import PSLD, PhaseDenoiser

CARD = Card(
    name="splitting",
    family="diffusion",
    title="Efficient Integrators for Diffusion Generative Models",
    authors="Pandey, Rudolph & Mandt",
    year=2023,
    arxiv="2310.07894",
    paper_id=287,
    summary="Advances momenta with the positions held and positions with the new momenta, as in molecular dynamics.",
    cost="One to three evaluations per step, depending on the scheme; the state is doubled.",
    when="For models trained on phase space.",
    kinds=("sample",),
    needs=("phase space",),
    search_space={"scheme": Choice("nse", "nvv", "rvv", "rse")},
    use="from hasten.diffusion import PSLD, lift\n"
    "from hasten.numerics.mixture import circle\n"
    "model = lift(circle(), PSLD())\n"
    "noise = model.schedule.prior((16, 2))\n"
    'states = hasten.diffusion.sample(model, noise=noise, sampler="splitting", nfe=60{hyper})\n'
    "samples, momenta = states.unbind(1)",
)

EVALUATIONS = {"euler": 1, "nse": 2, "nvv": 3, "rse": 1, "rvv": 2, "oba": 2, "obab": 3}


@sampler(CARD)
@dataclass(frozen=True)
class SplittingIntegrator(Sampler):
    """Splitting integrators of the reverse process of `PSLD`, on states of shape (batch, 2, ...).

    With s the score, time running backwards and `A`, `B` the parts that move positions and momenta only:
    `A: beta/2 (gamma x - m/M + gamma s_x)`, `B: beta/2 (nu m + x + M nu s_m)`. A step of length h is `B_h A_h` (`nse`)
    or `B_{h/2} A_h B_{h/2}` (`nvv`), each part with a score of its own. `rse` and `rvv` keep the order but evaluate
    less: the parts before the end of the step share the score of its beginning. `oba` and `obab` sample the reverse
    SDE: O is the exact Ornstein-Uhlenbeck step of friction and noise,
    `dx = -beta gamma/2 x dt + sqrt(beta gamma) dW` and `dm = -beta nu/2 m dt + sqrt(beta M nu) dW`; the other parts are
    then `A: -beta/2 m/M + beta gamma (x + s_x)`, `B: beta/2 x + beta nu (m + M s_m)`.

    Args:
        scheme: `nse`, `nvv`, `rse`, `rvv`, `oba`, `obab`, or `euler`, which moves both at once.
        grid, steps: see `Sampler`; of the kinds of grid only `uniform`.

    Cost: evaluations per step: euler and rse 1, nse, rvv and oba 2, nvv and obab 3.
    Source: Pandey, Rudolph & Mandt (2023), arXiv 2310.07894.
    """

    scheme: str = "nse"
    grid: str | Sequence[float] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("scheme", self.scheme, tuple(EVALUATIONS))
        if isinstance(self.grid, str) and self.grid != "uniform":
            raise InputError(f"grid must be 'uniform' or the times themselves, got {self.grid!r}")

    @property
    def evaluations(self) -> int:
        return EVALUATIONS[self.scheme]

    def times(self, schedule: Any, nfe: int | None) -> time_grid.Grid:
        if not isinstance(schedule, PSLD):
            raise InputError(f"splitting integrators need a model on phase space (PhaseDenoiser), got {schedule!r}")
        if not isinstance(self.grid, str):
            return time_grid.checked(schedule, self.grid)  # type: ignore[arg-type]
        count, length = self.step_count(nfe), schedule.T - schedule.t_min
        return (schedule.T, *(schedule.T - length * i / count for i in range(1, count)), schedule.t_min)

    def plan(self, schedule: Any, times: time_grid.Grid) -> list[Step]:
        return list(pairwise(times))

    def advance(self, denoiser: Any, state: Any) -> Tensor:
        s, t = state.plan[state.index]
        parts = _Parts(denoiser, s, t, stochastic=self.scheme.startswith("o"))
        if parts.stochastic:
            return SCHEMES["nse" if self.scheme == "oba" else "nvv"](parts, parts.friction(state.x, state.generator))
        return SCHEMES[self.scheme](parts, state.x)


@dataclass(frozen=True)
class _Parts:
    """The parts of one step, from time s back to time t."""

    denoiser: PhaseDenoiser
    s: float
    t: float
    stochastic: bool

    @property
    def h(self) -> float:
        return self.s - self.t

    def score(self, z: Tensor, t: float) -> Tensor:
        return self.denoiser.score(z, t)

    def positions(self, z: Tensor, score: Tensor) -> Tensor:
        """Rate of the positions."""
        p = self.denoiser.schedule
        friction = (z[:, 0] + score[:, 0]) * (p.gamma if self.stochastic else 0.5 * p.gamma)
        return p.beta * (friction - 0.5 / p.mass * z[:, 1])

    def momenta(self, z: Tensor, score: Tensor) -> Tensor:
        """Rate of the momenta."""
        p = self.denoiser.schedule
        friction = (z[:, 1] + p.mass * score[:, 1]) * (p.nu if self.stochastic else 0.5 * p.nu)
        return p.beta * (friction + 0.5 * z[:, 0])

    def drift(self, z: Tensor, score: Tensor, h: float) -> Tensor:
        """`A_h`: the positions move, the momenta stay."""
        return torch.stack((z[:, 0] + h * self.positions(z, score), z[:, 1]), dim=1)

    def kick(self, z: Tensor, score: Tensor, h: float) -> Tensor:
        """`B_h`: the momenta move, the positions stay."""
        return torch.stack((z[:, 0], z[:, 1] + h * self.momenta(z, score)), dim=1)

    def friction(self, z: Tensor, generator: torch.Generator) -> Tensor:
        """`O_h`: friction and noise, exactly."""
        p = self.denoiser.schedule
        noise = standard_normal(z, generator)
        moved = []
        for i, (rate, spread) in enumerate(((p.gamma, 1.0), (p.nu, math.sqrt(p.mass)))):
            kept = -0.5 * p.beta * rate * self.h
            fresh = spread * math.sqrt(-math.expm1(2.0 * kept))
            moved.append(z[:, i] * math.exp(kept) + noise[:, i] * fresh)
        return torch.stack(moved, dim=1)


def _euler(p: _Parts, z: Tensor) -> Tensor:
    score = p.score(z, p.s)
    return torch.stack((z[:, 0] + p.h * p.positions(z, score), z[:, 1] + p.h * p.momenta(z, score)), dim=1)


def _nse(p: _Parts, z: Tensor) -> Tensor:
    z = p.kick(z, p.score(z, p.s), p.h)
    return p.drift(z, p.score(z, p.s), p.h)


def _nvv(p: _Parts, z: Tensor) -> Tensor:
    z = p.kick(z, p.score(z, p.s), 0.5 * p.h)
    z = p.drift(z, p.score(z, p.s), p.h)
    return p.kick(z, p.score(z, p.t), 0.5 * p.h)


def _rse(p: _Parts, z: Tensor) -> Tensor:
    score = p.score(z, p.s)
    return p.drift(p.kick(z, score, p.h), score, p.h)


def _rvv(p: _Parts, z: Tensor) -> Tensor:
    score = p.score(z, p.s)
    z = p.drift(p.kick(z, score, 0.5 * p.h), score, p.h)
    return p.kick(z, p.score(z, p.t), 0.5 * p.h)


SCHEMES: dict[str, Callable[[_Parts, Tensor], Tensor]] = {
    "euler": _euler,
    "nse": _nse,
    "nvv": _nvv,
    "rse": _rse,
    "rvv": _rvv,
}
