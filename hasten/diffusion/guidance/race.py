"""Guidance as a method: a sampler under guidance, which can be raced on conditional problems."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor

from hasten.core.card import Card
from hasten.core.kinds.sample import Sampling
from hasten.core.method import Method
from hasten.core.registry import register
from hasten.diffusion.base import Sampler
from hasten.diffusion.guidance.base import Guidance, guided
from hasten.diffusion.samplers.ddim import DDIM

T = TypeVar("T")


@dataclass
class GuidedState:
    """A chain under guidance: the problem as the sampler sees it, and the sampler's own state."""

    problem: Sampling
    inner: Any

    @property
    def x(self) -> Tensor:
        """The batch at the present time."""
        return self.inner.x


@dataclass(frozen=True)
class Guided(Method[Sampling, GuidedState]):
    """A sampler under guidance.

    Args:
        guidance: the rule.
        sampler: the sampler that it steers.
    """

    guidance: Guidance
    sampler: Sampler = field(default_factory=DDIM)

    def init(self, problem: Sampling, generator: torch.Generator) -> GuidedState:
        inner = copy.copy(problem)
        inner.denoiser, inner.horizon = guided(self.sampler, problem.denoiser, self.guidance, problem.horizon)
        return GuidedState(inner, self.sampler.init(inner, generator))

    def step(self, problem: Sampling, state: GuidedState) -> GuidedState:
        state.inner = self.sampler.step(state.problem, state.inner)
        return state

    def done(self, state: GuidedState) -> bool:
        return self.sampler.done(state.inner)


def guidance(card: Card) -> Callable[[T], T]:
    """Class decorator: register a kind of guidance under `card`; it races on DDIM."""

    def enter(cls: T) -> T:
        def build(**hyper: Any) -> Guided:
            made = Guided(cls(**hyper))  # type: ignore[operator]
            object.__setattr__(made, "card", card)
            return made

        cls.card = card  # type: ignore[attr-defined]
        return register(card, build)(cls)

    return enter
