"""A cache as a method: a sampler on a cached network, which can be raced on problems with a network of blocks."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from hasten.core.card import Card
from hasten.core.kinds.sample import Sampling
from hasten.core.method import Method
from hasten.core.registry import register
from hasten.diffusion.base import Sampler
from hasten.diffusion.caching.base import Cache, cached_network
from hasten.diffusion.samplers.ddim import DDIM

T = TypeVar("T")


@dataclass
class CachedState:
    """A chain on a cached network: the problem as the sampler sees it, the sampler's own state, and the cache."""

    problem: Sampling
    inner: Any
    cache: Cache

    @property
    def x(self) -> torch.Tensor:
        """The batch at the present time."""
        return self.inner.x


@dataclass(frozen=True)
class Cached(Method[Sampling, CachedState]):
    """A sampler on a cached network. Full passes count as evaluations, forecasts do not.

    Args:
        kind: class of the cache.
        options: its arguments, by name.
        sampler: the sampler.
    """

    kind: type[Cache]
    options: tuple[tuple[str, Any], ...] = ()
    sampler: Sampler = field(default_factory=lambda: DDIM(grid="uniform"))

    def init(self, problem: Sampling, generator: torch.Generator) -> CachedState:
        cache, inner = self.kind(**dict(self.options)), copy.copy(problem)
        inner.horizon = None if problem.horizon is None else cache.calls_for(problem.horizon)

        def count(evaluations: int) -> None:
            if cache.is_full:
                problem._count(evaluations)

        inner.denoiser = problem.denoiser.counted(count, len(problem.noise))
        return CachedState(inner, self.sampler.init(inner, generator), cache)

    def step(self, problem: Sampling, state: CachedState) -> CachedState:
        with state.cache.resumed(cached_network(problem.denoiser, state.cache)):
            state.inner = self.sampler.step(state.problem, state.inner)
        return state

    def done(self, state: CachedState) -> bool:
        return self.sampler.done(state.inner)


def cache(card: Card) -> Callable[[T], T]:
    """Class decorator: register a cache under `card`; it races on DDIM with steps uniform in time."""

    def enter(cls: T) -> T:
        def build(**hyper: Any) -> Cached:
            cls(**hyper)  # type: ignore[operator]
            made = Cached(cls, tuple(sorted(hyper.items())))  # type: ignore[arg-type]
            object.__setattr__(made, "card", card)
            return made

        cls.card = card  # type: ignore[attr-defined]
        return register(card, build)(cls)

    return enter
