"""BDIA: a sampler whose step is undone exactly, because it is linear in the two states around the evaluated one."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, Real
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises, Sampling
from hasten.diffusion.base import Row, Sampler, Step, combine, planned, sampler, solving
from hasten.diffusion.inversion.base import Inverter, inversion, transfer
from hasten.diffusion.samplers.exponential import Span, second_order
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

BASES = ("ddim", "edm", "dpmpp")


def _card(name: str, kind: str, **fields: Any) -> Card:
    return Card(
        name=name,
        family="diffusion",
        title="Exact Diffusion Inversion via Bi-directional Integration Approximation",
        authors="Zhang, Lewis & Kleijn",
        year=2023,
        arxiv="2307.10829",
        paper_id=444,
        kinds=(kind,),
        **fields,
    )


SAMPLING = _card(
    "bdia",
    "sample",
    summary="Corrects the last step with the new evaluation while it makes the next one; every step can be undone.",
    cost="One evaluation per step, one stored state.",
    when="At DDIM's cost with second-order accuracy, and wherever samples will be inverted or edited.",
    search_space={"gamma": Real(0.5, 1.0), "grid": Choice("quadratic", "uniform")},
    use='samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="bdia", steps=20{hyper})',
)
INVERSION = _card(
    "bdia-inversion",
    "invert",
    summary="Undoes BDIA's steps from the data and one neighbouring state, without solving any equation.",
    cost="One evaluation per step, one stored state.",
    when="For exact round trips at DDIM's cost; keep both states of the pair.",
    search_space={"grid": Choice("quadratic", "uniform")},
    use='noise = hasten.diffusion.invert(denoiser, torch.randn(16, 2), method="bdia-inversion", steps=20{hyper})',
)


class Pair(NamedTuple):
    """The state at an end of the chain and its neighbour inside: together they determine the whole chain."""

    x: Tensor
    neighbour: Tensor


class Turn(NamedTuple):
    """A grid point with rows of the base step to its clean and (None at the noisy end) to its noisy neighbour."""

    clean: Step
    noisy: Step | None


@dataclass
class PairState:
    """A chain under way.

    Attributes:
        x: the batch at the present time.
        plan: coefficients at every grid point.
        before: the state before x; None at the beginning.
        index: steps done.
        horizon: evaluations that the plan was made with.
    """

    x: Tensor
    plan: Sequence[Any]
    before: Tensor | None = None
    index: int = 0
    horizon: int | None = None


@sampler(SAMPLING)
@dataclass(frozen=True)
class BDIA(Sampler):
    """Bi-directional integration approximation.

    With `Phi(i -> j | z)` the base sampler's step from grid point i to j, both from one evaluation at `z_i`:
    `z_{i-1} = gamma z_{i+1} - gamma Phi(i -> i+1 | z_i) + Phi(i -> i-1 | z_i)`; the first step is the base's own. The
    rule is linear in `z_{i+1}`, so that it is solved for it: from the pair `(z_0, z_1)` follows the whole chain.

    Args:
        gamma: weight of the correction, in [0, 1]; 0 is the base sampler, 1 the leapfrog rule. Below 1, inversion
            amplifies rounding by `gamma^-steps`.
        base: `ddim`; `edm` (Heun's rule in sigma/alpha) or `dpmpp` (midpoint on predictions of the clean data), both
            as one-step rules with one more evaluation per direction.
        grid, steps: see `Sampler`.

    Cost: one evaluation per step both ways (`edm`, `dpmpp`: three), one more state.
    Source: Zhang, Lewis & Kleijn (2023), arXiv 2307.10829.

    Example:
        >>> bdia = BDIA(steps=50)
        >>> latent = bdia.invert(denoiser.given(prompt), images)
        >>> edited = bdia.sample(denoiser.given(other), latent).x
    """

    gamma: float = 1.0
    base: str = "ddim"
    grid: str | Sequence[float] = field(default="quadratic", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.real("gamma", self.gamma, 0.0, 1.0)
        check.one_of("base", self.base, BASES)

    @property
    def evaluations(self) -> int:
        return 1 if self.base == "ddim" else 3

    def plan(self, schedule: Schedule, times: Grid) -> list[Turn]:
        return [
            Turn(
                self._rows(schedule, times[i], times[i + 1]),
                self._rows(schedule, times[i], times[i - 1]) if i > 0 else None,
            )
            for i in range(len(times) - 1)
        ]

    def _rows(self, schedule: Schedule, s: float, t: float) -> Step:
        """The base step from s to t in either direction."""
        if self.base == "dpmpp":
            if schedule.sigma(t) == 0.0:
                return (Row(s, 0.0, (schedule.alpha(t),)),)
            return second_order(Span(schedule, "x0", s, t))
        scale, weight = transfer(schedule, s, t)
        euler = Row(s, scale, (weight,))
        if self.base == "ddim" or schedule.sigma(t) == 0.0:
            return (euler,)
        return (euler, Row(t, scale, (0.5 * weight, 0.5 * weight)))

    def output(self, denoiser: Denoises, x: Tensor, t: float) -> Tensor:
        return denoiser.x0(x, t) if self.base == "dpmpp" else denoiser.eps(x, t)

    def init(self, problem: Sampling, generator: torch.Generator) -> Any:
        return PairState(problem.noise, planned(self, problem.schedule, problem.horizon))

    def advance(self, denoiser: Denoises, state: PairState) -> Tensor:
        turn, x = state.plan[state.index], state.x
        first = self.output(denoiser, x, turn.clean[0].t)
        new = self._reach(denoiser, x, first, turn.clean)
        if state.before is not None:
            assert turn.noisy is not None
            new += self.gamma * (state.before - self._reach(denoiser, x, first, turn.noisy))
        state.before = x
        return new

    def neighbour(self, denoiser: Denoises, x: Tensor, nfe: int | None = None) -> Tensor:
        """`z_1` from data `z_0`, by DDIM inversion of the chain's last step."""
        t, s = self.times(denoiser.schedule, nfe)[-2:]
        scale, weight = transfer(denoiser.schedule, s, t)
        return (x * scale).add_(denoiser.eps(x, t), alpha=weight)

    def undo(self, denoiser: Denoises, x: Tensor, before: Tensor, turn: Turn) -> Tensor:
        """The state `z_{i+1}` from `x = z_{i-1}` and `before = z_i`, at whose grid point `turn` is."""
        assert turn.noisy is not None
        first = self.output(denoiser, before, turn.clean[0].t)
        new = self._reach(denoiser, before, first, turn.noisy)
        return new.add_((x - self._reach(denoiser, before, first, turn.clean)) / self.gamma)

    def _reach(self, denoiser: Denoises, x: Tensor, first: Tensor, rows: Step) -> Tensor:
        outputs = [first]
        u = combine(rows[0].scale, x, rows[0].weights, outputs)
        for t, scale, weights in rows[1:]:
            outputs.insert(0, self.output(denoiser, u, t))
            u = combine(scale, x, weights, outputs)
        return u

    def sample(self, denoiser: Denoises, start: Tensor | Pair) -> Pair:
        """Data and their neighbour `(z_0, z_1)` from noise at T, or from the pair that `invert` returned."""
        plan = self._chain(denoiser)
        state = PairState(start, plan) if isinstance(start, Tensor) else PairState(start.neighbour, plan, start.x, 1)
        with solving(lambda: f"step {state.index + 1} of {len(plan)}"):
            while not self.done(state):
                state.x = self.advance(denoiser, state)
                state.index += 1
        assert state.before is not None
        return Pair(state.x, state.before)

    def invert(self, denoiser: Denoises, data: Tensor | Pair) -> Pair:
        """Noise and its neighbour `(z_N, z_{N-1})` from the pair that `sample` returned, or from data alone.

        Of data alone the neighbour is guessed by a step of DDIM inversion; sampling from the returned pair
        gives the data back to rounding all the same.
        """
        plan = self._chain(denoiser)
        check_invertible(self.gamma, len(plan), data if isinstance(data, Tensor) else data.x)
        with solving(lambda: "inversion"):
            x, before = (data, self.neighbour(denoiser, data)) if isinstance(data, Tensor) else data
            for turn in reversed(plan[1:]):
                x, before = before, self.undo(denoiser, x, before, turn)
        return Pair(before, x)

    def _chain(self, denoiser: Denoises) -> Sequence[Any]:
        if self.steps is None and isinstance(self.grid, str):
            raise InputError("BDIA: give steps, e.g. BDIA(steps=50); a chain is undone on the grid that made it")
        return planned(self, denoiser.schedule, None)


def check_invertible(gamma: float, steps: int, x: Tensor) -> None:
    """Refuse what cannot be undone, and warn where rounding would drown the result."""
    if gamma == 0.0:
        raise InputError("gamma must be above 0 for inversion (best 1): at 0 a step does not hold its predecessor")
    if x.dtype in (torch.float16, torch.bfloat16):
        raise InputError(f"data must be float32 or float64 for exact inversion, got {x.dtype}; convert with .float()")
    lost, kept = steps * math.log10(1.0 / gamma), -math.log10(torch.finfo(x.dtype).eps) - 3.65
    if lost > kept:
        warnings.warn(
            f"gamma={gamma:g} over {steps} steps amplifies rounding by 1e{lost:.0f}, more than {x.dtype} bears "
            f"(1e{kept:.0f}): use gamma=1 or fewer steps",
            stacklevel=3,
        )


@sampler(INVERSION)
@dataclass(frozen=True)
class BDIAInversion(Inverter):
    """BDIA undone from data alone: the neighbour `z_1` by a step of DDIM inversion, all others exactly.

    The noise alone does not hold the chain: to get the data back to rounding, use `BDIA.invert` and `BDIA.sample`,
    which keep the pair.

    Args:
        gamma, base: see `BDIA`; gamma above 0.
        grid, steps: see `Sampler`; the grid is walked from t_min to T.

    Cost: one evaluation per step (`edm`, `dpmpp`: three), one more state.
    Source: Zhang, Lewis & Kleijn (2023), arXiv 2307.10829.
    """

    gamma: float = 1.0
    base: str = "ddim"

    def __post_init__(self) -> None:
        super().__post_init__()
        check.real("gamma", self.gamma, 0.0, 1.0, open_low=True)
        check.one_of("base", self.base, BASES)

    @property
    def bdia(self) -> BDIA:
        """The sampler that is undone."""
        return BDIA(self.gamma, self.base, grid=self.grid, steps=self.steps)

    @property
    def evaluations(self) -> int:
        return self.bdia.evaluations

    def plan(self, schedule: Schedule, times: Grid) -> list[Turn]:
        return self.bdia.plan(schedule, times)[::-1]

    def init(self, problem: Any, generator: torch.Generator) -> PairState:
        problem = inversion(self, problem)
        plan = planned(self, problem.schedule, problem.horizon)
        check_invertible(self.gamma, len(plan), problem.clean)
        return PairState(problem.clean, plan, horizon=problem.horizon)

    def advance(self, denoiser: Denoises, state: PairState) -> Tensor:
        x, before = state.x, state.before
        state.before = x
        if before is None:
            return self.bdia.neighbour(denoiser, x, state.horizon)
        return self.bdia.undo(denoiser, before, x, state.plan[state.index - 1])
