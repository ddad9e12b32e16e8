"""AutoDiffusion: evolutionary search for the times at which a diffusion model is evaluated."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Integer, Real
from hasten.core.errors import DivergedError, InputError
from hasten.core.kinds.choose import Choice, Choosing
from hasten.core.kinds.sample import Denoises
from hasten.core.method import Method
from hasten.core.registry import entry
from hasten.diffusion.base import Sampler, sample, sampler
from hasten.numerics import time_grid
from hasten.numerics.reference import rms

USE = (
    'grid = hasten.diffusion.search_grid(denoiser, 4, noise=torch.randn(64, 2), method="{name}", scores=20{{hyper}})\n'
    'samples = hasten.diffusion.sample(denoiser, (16, 2), sampler="ddim", grid=grid)'
)
CARD = Card(
    name="autodiffusion",
    family="diffusion",
    title="AutoDiffusion: Training-Free Optimization of Time Steps and Architectures for Automated Diffusion Model "
    "Acceleration",
    authors="Li et al.",
    year=2023,
    arxiv="2309.10438",
    paper_id=148,
    summary="Breeds time grids by mutation and crossover, scored by what a sampler makes of them.",
    cost="As many scorings as are allowed, once per model and number of steps; nothing at sampling time.",
    when="At very few steps, where a model is sampled so often that a search once pays.",
    kinds=("choose",),
    search_space={"population": Integer(10, 50), "p_mut": Real(0.05, 0.4)},
    use=USE.format(name="autodiffusion"),
)
RANDOM = Card(
    name="random-choice",
    family="diffusion",
    title="Random search",
    authors="Bergstra & Bengio",
    year=2012,
    summary="Scores the even choice and then random ones.",
    cost="As many scorings as are allowed.",
    when="As the baseline of searches.",
    kinds=("choose",),
    use=USE.format(name="random-choice"),
)
TRIES = 10


@dataclass
class SearchState:
    """A search under way.

    Attributes:
        x: the best choice so far.
        queue: candidates that wait for their score.
        scores: every choice that was scored.
        generator: source of all randomness.
        epoch: generations that were bred.
        exhausted: no new choice was found any more.
    """

    x: Choice
    queue: list[Choice]
    generator: torch.Generator
    scores: dict[Choice, float] = field(default_factory=dict)
    epoch: int = 0
    exhausted: bool = False


@sampler(RANDOM, mutation=0, crossover=0, epochs=None)
@sampler(CARD)
@dataclass(frozen=True)
class EvolutionSearch(Method[Choosing, SearchState]):
    """Evolutionary search for a few of many items, e.g. the times of a grid, or the (step, layer) pairs to leave out.

    The first generation is the even choice, random choices (half of the population) and mutations of the even one.
    Every further generation is bred from the `top_k` best choices ever seen: `mutation` children replace each entry of
    a parent with probability `p_mut` by an unused one, `crossover` children take each entry from either of two parents,
    random choices fill up the population. No choice is scored twice.

    Args:
        population: choices per generation.
        top_k: parents.
        mutation, crossover: children of each kind per generation.
        p_mut: probability that an entry mutates.
        epochs: generations after the first; None for no end.

    Cost: `population (1 + epochs)` scorings, one per step. Source: Li et al. (2023), arXiv 2309.10438.
    """

    population: int = 50
    top_k: int = 10
    mutation: int = 25
    crossover: int = 25
    p_mut: float = 0.1
    epochs: int | None = 10

    def __post_init__(self) -> None:
        check.integer("population", self.population, 2)
        check.integer("top_k", self.top_k, 1)
        check.integer("mutation", self.mutation, 0)
        check.integer("crossover", self.crossover, 0)
        check.real("p_mut", self.p_mut, 0.0, 1.0, open_low=True)
        if self.epochs is not None:
            check.integer("epochs", self.epochs, 0)

    def init(self, problem: Choosing, generator: torch.Generator) -> SearchState:
        state = SearchState(problem.x0, [problem.x0], generator)
        drawn = self.population // 2 + 1 if self.mutation > 0 else self.population
        self._fill(state, drawn, lambda: self.random(problem, state))
        self._fill(state, self.population, lambda: self.mutated(problem.x0, problem, state))
        return state

    def step(self, problem: Choosing, state: SearchState) -> SearchState:
        if not state.queue:
            self._breed(problem, state)
        state.exhausted = not state.queue
        if state.queue:
            candidate = state.queue.pop(0)
            score = problem.score(candidate)
            state.scores[candidate] = math.inf if math.isnan(score) else score
            if state.scores[candidate] < state.scores.get(state.x, math.inf):
                state.x = candidate
        return state

    def done(self, state: SearchState) -> bool:
        bred = self.epochs is not None and state.epoch >= self.epochs
        return state.exhausted or (bred and not state.queue)

    def random(self, problem: Choosing, state: SearchState) -> Choice:
        """A choice drawn uniformly."""
        picked = torch.randperm(problem.count, generator=state.generator)[: problem.size]
        return tuple(sorted(picked.tolist()))

    def mutated(self, parent: Choice, problem: Choosing, state: SearchState) -> Choice:
        """The parent with some entries replaced by unused ones."""
        child = list(parent)
        for place in (torch.rand(len(child), generator=state.generator) < self.p_mut).nonzero().flatten().tolist():
            unused = sorted(set(range(problem.count)) - set(child))
            child[place] = unused[_index(len(unused), state)]
        return tuple(sorted(child))

    def crossed(self, one: Choice, two: Choice, state: SearchState) -> Choice | None:
        """Each entry from either parent; None if one comes twice."""
        coins = torch.rand(len(one), generator=state.generator) < 0.5
        child = {a if coin else b for a, b, coin in zip(one, two, coins.tolist())}
        return tuple(sorted(child)) if len(child) == len(one) else None

    def _breed(self, problem: Choosing, state: SearchState) -> None:
        parents = sorted(state.scores, key=state.scores.__getitem__)[: self.top_k]

        def parent() -> Choice:
            return parents[_index(len(parents), state)]

        state.epoch += 1
        self._fill(state, self.mutation, lambda: self.mutated(parent(), problem, state))
        self._fill(state, self.mutation + self.crossover, lambda: self.crossed(parent(), parent(), state))
        self._fill(state, self.population, lambda: self.random(problem, state))

    @staticmethod
    def _fill(state: SearchState, size: int, make: Callable[[], Choice | None]) -> None:
        """Add new candidates until the queue holds `size`, or tries run out."""
        for _ in range(TRIES * max(0, size - len(state.queue))):
            if len(state.queue) >= size:
                return
            candidate = make()
            if candidate is not None and candidate not in state.scores and candidate not in state.queue:
                state.queue.append(candidate)


def _index(count: int, state: SearchState) -> int:
    return int(torch.randint(count, (), generator=state.generator))


def grid_of(choice: Choice, times: time_grid.Grid) -> time_grid.Grid:
    """The grid with these interior times of a fine one, and its ends."""
    return (times[0], *(times[i + 1] for i in choice), times[-1])


def search_grid(
    denoiser: Denoises,
    steps: int,
    *,
    noise: Tensor | None = None,
    sampler: str | Sampler = "ddim",
    score: Callable[[Tensor], float] | None = None,
    method: str | EvolutionSearch = "autodiffusion",
    scores: int = 170,
    candidates: int = 100,
    generator: torch.Generator | None = None,
    **hyper: Any,
) -> time_grid.Grid:
    """Search the times of a sampler's steps for a trained model, once; hand the result to `sample` as its `grid`.

    Args:
        denoiser: the network with its schedule.
        steps: steps of the grid, at least 2.
        noise: start noise of the samples that are scored, at time T.
        sampler: the sampler that will use the grid.
        score: number for a batch of samples, smaller is better, e.g. a Frechet distance to data. If not given, the RMS
            distance to the exact solution, which costs 1600 evaluations of the network once.
        method: name of a search, or one.
        scores: grids to try.
        candidates: times to choose from, uniform in t, with the ends.
        generator: source of the search's randomness; torch's global one if not given.
        hyper: the search's own arguments, e.g. `population=20`.

    Returns:
        The best grid found: `steps + 1` times from T to t_min.

    Example:
        >>> grid = search_grid(denoiser, 4, noise=torch.randn(256, 3, 32, 32))
        >>> images = sample(denoiser, (16, 3, 32, 32), sampler="ddim", grid=grid)
    """
    check.integer("steps", steps, 2)
    check.integer("scores", scores, 1)
    check.integer("candidates", candidates, steps + 2)
    if noise is None:
        raise InputError("give noise, the start of the samples that are scored, e.g. torch.randn(256, 3, 32, 32)")
    start = noise
    search = searching(method, hyper)
    named = isinstance(sampler, str)
    solver = entry(sampler if "." in sampler else f"diffusion.{sampler}").build() if named else sampler
    judge = score or partial(rms, reference=denoiser.solve(start))
    times = time_grid.uniform(denoiser.schedule, candidates - 1)

    def judged(choice: Choice) -> float:
        try:
            return judge(sample(denoiser, noise=start, sampler=replace(solver, grid=grid_of(choice, times))))
        except DivergedError:
            return math.inf

    problem = Choosing(judged, steps - 1, candidates - 2)
    return grid_of(searched(search, problem, scores, generator), times)


def searching(method: str | EvolutionSearch, hyper: Mapping[str, Any]) -> EvolutionSearch:
    """The search of this name with these arguments, or itself."""
    if isinstance(method, str):
        search = entry(method if "." in method else f"diffusion.{method}").build(**hyper)
    elif hyper:
        raise InputError(f"{', '.join(hyper)}: set these on the search that you pass")
    else:
        search = method
    if not isinstance(search, EvolutionSearch):
        raise InputError(f"{method!r} is no search; `hasten list choose` shows those")
    return search


def searched(search: EvolutionSearch, problem: Choosing, scores: int, generator: torch.Generator | None) -> Choice:
    """The best choice after so many scorings."""
    state = search.init(problem, generator or torch.default_generator)
    while not search.done(state) and problem.calls["score"] < scores:
        state = search.step(problem, state)
    return state.x
