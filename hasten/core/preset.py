"""Presets: races worth repeating, under a name."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from hasten.core.errors import unknown
from hasten.core.race import race
from hasten.core.result import Result


@dataclass(frozen=True)
class Preset:
    """A race with everything settled: `hasten race --preset NAME`.

    Attributes:
        name: what users type.
        summary: what it is for, one sentence.
        problems: the ready problems, with their parameters.
        methods: gives the full names of the methods; asked when the race begins, so that new methods take part.
        options: further arguments of `race`: seeds, trials, baseline, cost, ...
    """

    name: str
    summary: str
    problems: tuple[str, ...]
    methods: Callable[[], Sequence[str]]
    options: dict[str, Any]

    def race(self, **options: Any) -> Result:
        """Run it; `options` go before its own, so that a part of it can be tried quickly."""
        return race(self.problems, self.methods(), **{**self.options, **options})


_presets: dict[str, Preset] = {}


def preset(
    name: str, summary: str, problems: Sequence[str], **options: Any
) -> Callable[[Callable[[], Sequence[str]]], Callable[[], Sequence[str]]]:
    """Decorator of a function that gives the methods: enter a preset."""

    def enter(methods: Callable[[], Sequence[str]]) -> Callable[[], Sequence[str]]:
        _presets[name] = Preset(name, summary, tuple(problems), methods, options)
        return methods

    return enter


def presets() -> list[Preset]:
    """All presets, sorted by name."""
    importlib.import_module("hasten.presets")
    return [_presets[name] for name in sorted(_presets)]


def get(name: str) -> Preset:
    """The preset of this name.

    Raises:
        UnknownNameError: there is none.
    """
    names = [entry.name for entry in presets()]
    if name not in names:
        raise unknown("preset", name, names, f"Presets: {', '.join(names)}.")
    return _presets[name]
