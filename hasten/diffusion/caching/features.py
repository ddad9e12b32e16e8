"""What a cache stores of a network: outputs of its modules along the steps, apart for each stream of calls."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from hasten.core.errors import InputError
from hasten.numerics import taylor

Place = tuple[str, int]
"""Path of a module, and which of its calls in a pass."""


class Feature:
    """An output of a module along the steps: a tensor, or a tuple of tensors and None."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._tuple = False
        self._factors: list[list[Tensor] | None] = []

    def refresh(self, output: Any, gap: int) -> None:
        """Take in the output of a full pass, `gap` steps after the one before."""
        self._tuple = isinstance(output, (tuple, list))
        parts = list(output) if self._tuple else [output]
        if not all(part is None or isinstance(part, Tensor) for part in parts):
            raise InputError(f"a cache stores tensors and tuples of tensors; a module returned {type(output).__name__}")
        before = self._factors or [None] * len(parts)
        self._factors = [
            None if part is None else taylor.refreshed(old or (), part.detach().clone(), gap, self._order)
            for part, old in zip(parts, before, strict=True)
        ]

    def forecast(self, ahead: int) -> Any:
        """The output expected `ahead` steps after the latest full pass."""
        parts = [None if factors is None else taylor.forecast(factors, ahead) for factors in self._factors]
        return tuple(parts) if self._tuple else parts[0]

    @property
    def elements(self) -> int:
        """Numbers stored."""
        return sum(factor.numel() for factors in self._factors for factor in factors or ())


@dataclass
class Stream:
    """One of the calls that every step makes.

    Attributes:
        kind: shape, type and device of the network's input.
        features: what is stored, by place.
        last: step of the latest full pass.
        skipped: forecasts since then.
    """

    kind: tuple[Any, ...]
    features: dict[Place, Feature] = field(default_factory=dict)
    last: int = 0
    skipped: int = 0
