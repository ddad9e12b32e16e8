"""What all samplers share: the grid, the plan of coefficients, the state, the step, and `sample` for users.

A sampler's plan is a list of steps; a step is a list of rows. A row says: evaluate the network at time `t`, in the
state made by the row before, then set the state to `scale x + sum_j weights[j] m_j`, where x is the state at the
beginning of the step and `m_0` the newest output of the network. One-step methods of several stages have several rows
per step, multistep methods one row that reaches back to the outputs of earlier steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import DivergedError, InputError
from hasten.core.kinds.sample import Denoises, Sampling
from hasten.core.method import Method
from hasten.core.registry import entry, register
from hasten.diffusion.caching.base import Cache, caching, make_cache
from hasten.diffusion.guidance.base import Guidance, GuidedDenoiser, guided
from hasten.numerics import draws, time_grid
from hasten.numerics.noise import Schedule

T = TypeVar("T")


class Row(NamedTuple):
    """Evaluate at time `t`, then combine: `scale x + sum_j weights[j] m_j`, the newest output first."""

    t: float
    scale: float
    weights: tuple[float, ...]


Step = tuple[Any, ...]


@dataclass
class SamplerState:
    """A chain of samples under way.

    Attributes:
        x: the batch at the present time.
        plan: coefficients of every step.
        index: steps done.
        outputs: outputs of the network that later steps need, newest first.
        generator: source of noise, for samplers that add some.
    """

    x: Tensor
    plan: Sequence[Step]
    generator: torch.Generator
    index: int = 0
    outputs: list[Tensor] = field(default_factory=list)


@dataclass(frozen=True)
class Sampler(Method[Sampling, Any]):
    """Base of the samplers. They are values: equal parameters make equal samplers, which share cached coefficients.

    A subclass gives `plan` (and `evaluations`, if not one per step). What it wants of the denoiser is said by `output`.

    Args:
        grid: kind of time grid (`uniform`, `quadratic`, `logsnr`, `karras`) or the times themselves, decreasing.
        steps: number of steps; None plans with the evaluations that the problem allows.

    Attributes:
        carries: whether `advance` makes its step from clean data and noise as they come from `split`, or begins it at
            the guided state, so that guidance may noise again with another noise than it removed.
    """

    carries: ClassVar[bool] = False
    grid: str | Sequence[float] = field(default="logsnr", kw_only=True)
    steps: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        if isinstance(self.grid, str):
            check.one_of("grid", self.grid, tuple(time_grid.KINDS))
        else:
            object.__setattr__(self, "grid", tuple(float(t) for t in self.grid))
        if self.steps is not None:
            check.integer("steps", self.steps, 1)

    @property
    def evaluations(self) -> int:
        """Network evaluations per step."""
        return 1

    def step_count(self, nfe: int | None) -> int:
        """Steps that `nfe` evaluations pay for; `steps`, if that is set."""
        if self.steps is not None:
            return self.steps
        if nfe is None:
            raise InputError(f"{self.card.name}: give steps, or nfe (the evaluations to plan with)")
        if nfe < self.evaluations:
            raise InputError(
                f"{self.card.name} needs {self.evaluations} evaluations per step, but only {nfe} may be used"
            )
        return nfe // self.evaluations

    def times(self, schedule: Schedule, nfe: int | None) -> time_grid.Grid:
        """The times between which the steps go, from noise to data."""
        if isinstance(self.grid, str):
            return time_grid.make(schedule, self.step_count(nfe), self.grid)
        return time_grid.checked(schedule, self.grid)

    def plan(self, schedule: Schedule, times: time_grid.Grid) -> Sequence[Step]:
        """Coefficients of every step, computed in float64 once per grid."""
        raise NotImplementedError

    def plan_for(self, schedule: Schedule, nfe: int | None) -> Sequence[Step]:
        """Plan on the sampler's own grid, with `nfe` evaluations to spend."""
        return self.plan(schedule, self.times(schedule, nfe))

    def output(self, denoiser: Denoises, x: Tensor, t: float) -> Tensor:
        """What the sampler asks of the denoiser."""
        return denoiser.eps(x, t)

    def init(self, problem: Sampling, generator: torch.Generator) -> Any:
        return SamplerState(problem.noise, planned(self, problem.schedule, problem.horizon), generator)

    def step(self, problem: Sampling, state: Any) -> Any:
        with solving(lambda: f"step {state.index + 1} of {len(state.plan)}"):
            if isinstance(problem.denoiser, GuidedDenoiser):
                problem.denoiser.begin_step(state.index, len(state.plan))
            state.x = self.advance(problem.denoiser, state)
        state.index += 1
        return state

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        """The samples at the end of the present step."""
        x = u = state.x
        outputs = state.outputs
        for stage, (t, scale, weights) in enumerate(state.plan[state.index]):
            outputs.insert(0, self.output(denoiser, u, t))
            if stage == 0:
                x = carried(denoiser, x)
            u = combine(scale, x, weights, outputs)
        return u

    def accept(self, guidance: Guidance) -> None:
        """Refuse guidance that this sampler would not follow."""
        kind = type(self)
        if guidance.remembers and kind.step is not Sampler.step:
            raise InputError(
                f"{type(guidance).__name__} changes from step to step, but {self.card.name} does not take its steps "
                "one after the other; use another sampler, or CFG"
            )
        stepped = kind.advance is Sampler.advance and kind.step is Sampler.step
        if guidance.renoises and not (stepped or self.carries):
            raise InputError(
                f"{type(guidance).__name__} noises again with another noise than it removes, which {self.card.name} "
                "cannot do; use ddim or a DPM-Solver with fixed steps, or CFG"
            )

    def done(self, state: Any) -> bool:
        return state.index >= len(state.plan)

    def changed(self, **options: Any) -> Sampler:
        """The same sampler with other arguments, under the same card."""
        made = replace(self, **options)
        object.__setattr__(made, "card", self.card)
        return made


@contextmanager
def solving(where: Callable[[], str]) -> Iterator[None]:
    """Evaluate networks without gradients; if one fails or leaves the finite numbers, say `where` in the chain."""
    try:
        with torch.no_grad():
            yield
    except (DivergedError, InputError) as error:
        raise type(error)(f"{where()}: {error}") from None


@lru_cache(maxsize=256)
def planned(sampler: Sampler, schedule: Schedule, nfe: int | None) -> Sequence[Step]:
    """The sampler's plan on its grid of this schedule, computed once."""
    return sampler.plan_for(schedule, nfe)


def carried(denoiser: Any, x: Tensor) -> Tensor:
    """The state at which a step begins, after the first answer in it: guidance may have moved it."""
    shift = denoiser.shift if isinstance(denoiser, GuidedDenoiser) else None
    return x if shift is None else x + shift


def combine(scale: float, x: Tensor, weights: Sequence[float], outputs: list[Tensor]) -> Tensor:
    """`scale x + sum_j weights[j] outputs[j]`; drops the outputs that no weight reaches."""
    total = x * scale
    for weight, output in zip(weights, outputs):
        if weight != 0.0:
            total.add_(output, alpha=weight)
    del outputs[len(weights) :]
    return total


def sampler(card: Card, **preset: Any) -> Callable[[T], T]:
    """Class decorator: register a sampler class under `card`, with these arguments fixed."""

    def enter(cls: T) -> T:
        def build(**hyper: Any) -> Sampler:
            made = cls(**{**preset, **hyper})  # type: ignore[operator]
            object.__setattr__(made, "card", card)
            return made

        cls.card = card  # type: ignore[attr-defined]
        return register(card, build)(cls)

    return enter


def sample(
    denoiser: Denoises,
    shape: Sequence[int] | None = None,
    sampler: str | Sampler = "dpm-solver-3",
    steps: int | None = None,
    *,
    nfe: int | None = None,
    noise: Tensor | None = None,
    generator: torch.Generator | Sequence[torch.Generator] | None = None,
    guidance: str | Guidance | None = None,
    cache: str | Cache | None = None,
    callback: Callable[[Any], Any] | None = None,
    costs: dict[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **hyper: Any,
) -> Tensor:
    """Draw samples from a trained diffusion or flow model in few network evaluations.

    Args:
        denoiser: the network with its schedule and prediction type, e.g. `Denoiser(net, VPLinear(), "epsilon")`.
        shape: shape of the batch, (batch, ...); the start noise is drawn.
        sampler: name of a sampler, or one.
        steps: steps to take. A step costs one to four evaluations, depending on the sampler.
        nfe: network evaluations to spend, instead of `steps`; 20 if neither is given.
        noise: start noise at time T instead of `shape`, standard deviation `sigma(T)`.
        generator: source of all randomness, on any device; torch's global one if not given. A list of one per sample
            gives each sample noise of its own: the same samples however they are split into batches.
        guidance: steers a conditional model, given as `denoiser.given(labels)`, towards its condition: `CFG(7.5)` or
            the name of one. A guided evaluation counts as up to two; `nfe` plans with two.
        cache: lets most evaluations run a part of the network only: `TaylorSeer(interval=4)` or the name of one.
        callback: called with the state after every step (`state.x`, `state.index`).
        costs: filled with `nfe` (evaluations per sample) and `rounds` (calls of the network one after the other), and
            with a cache also `passes` (evaluations per sample that ran all of the network).
        dtype, device: of the drawn noise.
        hyper: the sampler's own arguments, e.g. `grid="karras"`.

    Returns:
        The samples at t_min, in the noise's shape and type.

    Raises:
        InputError: an argument is out of range, the grid does not decrease, or the network returns another shape.
        DivergedError: the network returned nan or infinity; the message says at which step and time.

    Example:
        >>> images = sample(denoiser, (16, 3, 32, 32), sampler="dpm-solver-3", steps=10)
    """
    if (shape is None) == (noise is None):
        raise InputError("give either shape (of the batch) or noise (the start itself)")
    if steps is not None and nfe is not None:
        raise InputError(f"give either steps or nfe, got steps={steps} and nfe={nfe}")
    source = draws.checked(generator)
    start: Any = noise
    if shape is not None:
        start = draws.normal(shape, source, dtype, device) * denoiser.schedule.noise_scale
    if isinstance(sampler, str):
        method = entry(sampler if "." in sampler else f"diffusion.{sampler}").build(**hyper)
    elif hyper:
        raise InputError(f"{', '.join(hyper)}: set these on the sampler that you pass")
    else:
        method = sampler
    if steps is not None:
        method = method.changed(steps=steps)
    horizon = check.integer("nfe", nfe, 1) if nfe is not None else 20 if steps is None else None
    if guidance is not None:
        denoiser, horizon = guided(method, denoiser, guidance, horizon)
    elif isinstance(denoiser, GuidedDenoiser):
        method.accept(denoiser.guidance)
    problem = Sampling(denoiser, start, metric=lambda x: 0.0)
    problem.horizon = horizon
    store = make_cache(cache)
    with caching(denoiser, store):
        state = method.init(problem, source)  # type: ignore[arg-type]
        while not method.done(state):
            state = method.step(problem, state)
            if callback is not None:
                callback(state)
    if costs is not None:
        passes = {} if store is None else {"passes": store.passes(len(start))}
        costs.update(nfe=problem.calls["nfe"], rounds=problem.rounds, **passes)
    return state.x
