"""The card of a method: what it is, where it comes from, what it costs, when to prefer it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hasten.core.errors import InputError


@dataclass(frozen=True)
class Real:
    """A real hyper-parameter from `low` to `high`, searched on a log scale if `log`."""

    low: float
    high: float
    log: bool = False

    def __post_init__(self) -> None:
        if not self.low < self.high or (self.log and self.low <= 0):
            raise InputError(f"search range [{self.low}, {self.high}] is empty or not positive on a log scale")


@dataclass(frozen=True)
class Integer:
    """An integer hyper-parameter from `low` to `high` (both included)."""

    low: int
    high: int
    log: bool = False


@dataclass(frozen=True)
class Choice:
    """A hyper-parameter with a few possible values."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        object.__setattr__(self, "options", options)


Range = Real | Integer | Choice


def LogReal(low: float, high: float) -> Real:
    """A positive hyper-parameter searched on a log scale."""
    return Real(low, high, log=True)


@dataclass(frozen=True)
class Card:
    """One published technique.

    Attributes:
        name: what users type, e.g. `adopt`; unique within the family.
        family: the package that the method belongs to, e.g. `optim`.
        title, authors, year, arxiv: the paper. `arxiv` is "" where there is none.
        paper_id: number of the paper in the library's list, None for a classical baseline.
        summary: what it does, one sentence.
        cost: time and memory per step in the paper's terms.
        when: when to prefer it, one sentence.
        kinds: the kinds of problem it serves (`train`, `minimise`, `saddle`, `sample`, ...).
        search_space: hyper-parameters that a race tunes, by name.
        use: the lines of code with which a user takes it up. `{hyper}` stands for the tuned hyper-parameters,
            written as keyword arguments; `{hyper.lr}` stands for one of them, `{hyper}` then for the others.
        needs: what a problem must offer beyond its kind, e.g. `hessian`.
    """

    name: str
    family: str
    title: str
    authors: str
    year: int
    summary: str
    cost: str
    when: str
    kinds: tuple[str, ...]
    use: str
    arxiv: str = ""
    paper_id: int | None = None
    needs: tuple[str, ...] = ()
    search_space: Mapping[str, Range] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for attribute in ("name", "family", "title", "summary", "cost", "when", "use"):
            if not getattr(self, attribute):
                raise InputError(f"card {self.name!r}: {attribute} is empty")
        if not self.kinds or isinstance(self.kinds, str):
            raise InputError(f"card {self.name!r}: kinds must be a non-empty tuple of problem kinds")

    @property
    def id(self) -> str:
        """Full name, `family.name`."""
        return f"{self.family}.{self.name}"

    @property
    def source(self) -> str:
        """Authors, year and arXiv number, as a reader would cite it."""
        return f"{self.authors} ({self.year})" + (f", arXiv {self.arxiv}" if self.arxiv else "")

    def fits(self, kind: str, offers: frozenset[str] = frozenset()) -> bool:
        """Whether it serves this kind of problem, given the oracles that the problem offers."""
        return kind in self.kinds and set(self.needs) <= offers

    def code(self, hyper: Mapping[str, Any] | None = None) -> str:
        """The code that uses this method, with `hyper` filled in."""
        left = dict(hyper or {})
        code = self.use
        for name in re.findall(r"\{hyper\.(\w+)\}", code):
            code = _fill(code, f"{{hyper.{name}}}", {name: left.pop(name)} if name in left else {})
        return _fill(code, "{hyper}", left)

    def load(self) -> Any:
        """What users hold: the optimizer class, the solver class, the sampler function, ..."""
        from hasten.core.registry import entry

        return entry(self.id).target

    def make(self, **hyper: Any) -> Any:
        """The method behind the protocol (`init`, `step`), with these hyper-parameters."""
        from hasten.core.registry import entry

        return entry(self.id).build(**hyper)


def _fill(code: str, place: str, hyper: Mapping[str, Any]) -> str:
    arguments = "".join(f", {key}={_literal(value)}" for key, value in hyper.items())
    return code.replace(f"({place}", f"({arguments[2:]}").replace(place, arguments)


def _literal(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
