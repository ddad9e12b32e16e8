"""Which methods there are. A family is imported when it is first touched; its modules register themselves."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from hasten.core import fingerprint
from hasten.core.card import Card
from hasten.core.errors import InputError, unknown

FAMILIES = ("optim", "solve", "diffusion", "distributed")

T = TypeVar("T")


@dataclass(frozen=True)
class Entry:
    """A registered method: its card, what users hold, and how the protocol reaches it."""

    card: Card
    target: Any
    build: Callable[..., Any]
    module: str


_entries: dict[str, Entry] = {}
_loaded: set[str] = set()


def register(card: Card, build: Callable[..., Any] | None = None) -> Callable[[T], T]:
    """Class or function decorator: enter the object in the registry under `card`.

    Args:
        card: the card.
        build: makes the method behind the protocol from hyper-parameters; the decorated object itself
            (a `Method` subclass) if not given. Families pass their adapter.
    """

    def enter(target: T) -> T:
        known = _entries.get(card.id)
        if known is not None and (known.module, known.card.title) != (target.__module__, card.title):
            raise InputError(f"method name {card.id!r} is taken by {known.module}; choose another card name")
        make = build if build is not None else target
        _entries[card.id] = Entry(card, target, make, target.__module__)  # type: ignore[arg-type]
        return target

    return enter


def adopt(entry: Entry) -> None:
    """Enter what another process registered."""
    _entries[entry.card.id] = entry


def import_tree(package: str) -> None:
    """Import every module below a package, so that each can register what it holds.

    Modules whose name begins with an underscore are left out: they import optional libraries.
    """
    root = importlib.import_module(package)
    for module in pkgutil.walk_packages(root.__path__, package + "."):
        if not module.name.rpartition(".")[2].startswith("_"):
            importlib.import_module(module.name)


def _load(family: str) -> None:
    if family not in _loaded:
        import_tree(f"hasten.{family}")
        _loaded.add(family)


def families() -> list[str]:
    """Names of all families: the library's own and those of methods that the user registered."""
    return list(dict.fromkeys([*FAMILIES, *(entry.card.family for entry in _entries.values())]))


def methods(family: str | None = None) -> list[Card]:
    """Cards of all methods, or of one family, sorted by family and name."""
    if family is not None and family not in families():
        raise unknown("family", family, families(), f"Families: {', '.join(families())}.")
    for name in FAMILIES if family is None else (family,):
        if name in FAMILIES:
            _load(name)
    cards = [entry.card for entry in _entries.values() if family in (None, entry.card.family)]
    return sorted(cards, key=lambda card: (card.family, card.name))


def entry(name: str) -> Entry:
    """The registry's entry for `family.name`, or for a bare `name` that only one family has."""
    family, _, _ = name.rpartition(".")
    if family in FAMILIES:
        _load(family)
    if name in _entries:
        return _entries[name]
    candidates = [card for card in methods() if name in (card.name, card.id)]
    if len(candidates) == 1:
        return _entries[candidates[0].id]
    if candidates:
        ids = ", ".join(card.id for card in candidates)
        raise InputError(f"method name {name!r} is ambiguous; say which: {ids}")
    names = [label for card in methods() for label in (card.name, card.id)]
    raise unknown("method", name, names, "`hasten list` shows all methods.")


def modules(name: str) -> tuple[str, ...]:
    """Modules that a method's numbers depend on: its own and what that imports."""
    return fingerprint.closure(entry(name).module)


def get(name: str) -> Card:
    """Card of one method: `get("optim.adopt")`, or `get("adopt")` where only one family has the name."""
    return entry(name).card
