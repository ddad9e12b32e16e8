"""What all inversions share: the grid walked from data to noise, the implicit step, and `invert` for users."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.kinds.invert import Inversion
from hasten.core.kinds.sample import Denoises
from hasten.core.registry import entry
from hasten.diffusion.base import Sampler, SamplerState, Step, planned
from hasten.diffusion.guidance.base import GuidedDenoiser
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid


@dataclass(frozen=True)
class Inverter(Sampler):
    """Base of the methods that walk a sampler's grid backwards. They are values, as samplers are.

    The plan goes from t_min to T. For every step it holds the times s < t and the two coefficients of DDIM, with which
    `z_t = scale z_s + weight eps`.
    """

    grid: str | Sequence[float] = field(default="quadratic", kw_only=True)

    def plan(self, schedule: Schedule, times: Grid) -> Sequence[Step]:
        return [(s, t, *transfer(schedule, s, t)) for s, t in pairwise(times[::-1])]

    def init(self, problem: Any, generator: torch.Generator) -> Any:
        problem = inversion(self, problem)
        return SamplerState(problem.clean, planned(self, problem.schedule, problem.horizon), generator)


def transfer(schedule: Schedule, s: float, t: float) -> tuple[float, float]:
    """`(scale, weight)` of a DDIM step in either direction: `x_t = scale x_s + weight eps`.

    It is written in signal and noise levels, so that it holds where either of them vanishes at t.
    """
    start = schedule.alpha(s)
    if start < 1e-12:
        raise InputError(f"a step begins at t={s:g} with alpha=0, where no signal is left; move that end of the grid")
    scale = schedule.alpha(t) / start
    return scale, schedule.sigma(t) - scale * schedule.sigma(s)


def inversion(method: Sampler, problem: Any) -> Inversion:
    """The problem, if it is one of inversion."""
    if not isinstance(problem, Inversion):
        raise InputError(f"{method.card.name} turns data into noise: call hasten.diffusion.invert, not sample")
    return problem


def invert(
    denoiser: Denoises,
    x0: Tensor,
    steps: int | None = None,
    method: str | Sampler = "ddim-inversion",
    *,
    nfe: int | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[Any], Any] | None = None,
    costs: dict[str, int] | None = None,
    **hyper: Any,
) -> Tensor:
    """Find the noise from which a diffusion or flow model generates given data.

    Args:
        denoiser: the network with its schedule, under the condition that describes the data: `denoiser.given(prompt)`.
        x0: the data at time t_min, shape (batch, ...).
        steps: steps of the grid; generate with as many, on the same kind of grid.
        method: name of an inversion (`ddim-inversion`, `bdia-inversion`, `newton-inversion`, `uni-inv`, `flowopt`), or
            one.
        nfe: network evaluations to spend, instead of `steps`; without either, 20 steps are made.
        generator: source of all randomness; torch's global one if not given.
        callback: called with the state after every step (`state.x`, `state.index`).
        costs: filled with `nfe` (evaluations per sample) and `rounds` (calls of the network one after the other).
        hyper: the method's own arguments, e.g. `grid="uniform"`.

    Returns:
        The noise at time T, in the data's shape and type.

    Raises:
        InputError: an argument is out of range, the data are not finite, or the network returns another shape.
        DivergedError: the network returned nan or infinity; the message says at which step and time.

    Example:
        >>> noise = invert(denoiser.given(prompt), images, steps=50, method="newton-inversion")
        >>> edited = sample(denoiser.given(other), noise=noise, sampler="ddim", steps=50)
    """
    if steps is not None and nfe is not None:
        raise InputError(f"give either steps or nfe, got steps={steps} and nfe={nfe}")
    made: Any = method
    if isinstance(method, str):
        made = entry(method if "." in method else f"diffusion.{method}").build(**hyper)
    elif hyper:
        raise InputError(f"{', '.join(hyper)}: set these on the method that you pass")
    if "invert" not in made.card.kinds:
        raise InputError(f"method must be one that inverts (`hasten list invert`), got {made.card.name}")
    if steps is None and nfe is None and made.steps is None and isinstance(made.grid, str):
        steps = 20
    if steps is not None:
        card, made = made.card, replace(made, steps=steps)
        object.__setattr__(made, "card", card)
    if isinstance(denoiser, GuidedDenoiser) and (denoiser.guidance.renoises or denoiser.guidance.remembers):
        name = type(denoiser.guidance).__name__
        if denoiser.guidance.remembers:
            raise InputError(f"{name} depends on the steps before, which an inversion does not have yet; use CFG")
        raise InputError(
            f"{name} noises again with another noise than it removes, which {made.card.name} would not undo; call "
            f"hasten.diffusion.guided_invert(denoiser.given(labels), x0, {name}(...))"
        )
    problem = Inversion(denoiser, x0, metric=lambda noise: 0.0)
    problem.horizon = check.integer("nfe", nfe, 1) if nfe is not None else None
    state = made.init(problem, generator or torch.default_generator)
    while not made.done(state):
        state = made.step(problem, state)
        if callback is not None:
            callback(state)
    if costs is not None:
        costs.update(nfe=problem.calls["nfe"], rounds=problem.rounds)
    return state.x
