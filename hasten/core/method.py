"""The protocol that every method follows, whatever its family."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar, Generic, Protocol, TypeVar

import torch

from hasten.core.card import Card
from hasten.core.problem import Instance


class State(Protocol):
    """What a method carries between steps. `x` is its current answer, in the form the problem's metric takes."""

    x: Any


P = TypeVar("P", bound=Instance)
S = TypeVar("S", bound=State)


class Method(ABC, Generic[P, S]):
    """One published technique: `init` makes the state, `step` advances it.

    A method reads the problem only through its oracles, which count themselves. All randomness comes from the
    generator given to `init` (keep it in the state). `step` may change the state in place or return a new one.
    """

    card: ClassVar[Card]

    @abstractmethod
    def init(self, problem: P, generator: torch.Generator) -> S:
        """The state before the first step."""

    @abstractmethod
    def step(self, problem: P, state: S) -> S:
        """The state after one more step."""

    def done(self, state: S) -> bool:
        """True when another step would change nothing, e.g. at the end of a sampler's grid."""
        return False
