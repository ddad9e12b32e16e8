"""What every solver stands on: the class, its registration and the checks at its door."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from hasten.core.card import Card
from hasten.core.errors import DivergedError, InputError, MismatchError, unknown
from hasten.core.kinds.minimise import Minimisation
from hasten.core.method import Method, P, S
from hasten.core.registry import entry, register

C = TypeVar("C", bound="type[Solver[Any, Any]]")


class Solver(Method[P, S]):
    """A method on an explicit problem: `init(problem, generator)` makes the state, `step(problem, state)` advances it.

    Solvers are frozen dataclasses: their fields are the hyper-parameters, checked in `__post_init__`. All that
    changes lives in the state, a dataclass of its own whose `x` is the current answer; `step` returns a new state
    and leaves the tensors of the old one alone, so that a failed step loses nothing. Work is counted by the
    problem's oracles. The drivers in `hasten.solve.drive` run a solver to its end.
    """


def solver(card: Card) -> Callable[[C], C]:
    """Class decorator: register a solver under its card."""

    def enter(cls: C) -> C:
        cls.card = card
        return register(card)(cls)

    return enter


def resolve(method: str | Solver[Any, Any], hyper: Mapping[str, Any]) -> Solver[Any, Any]:
    """The solver of a name and hyper-parameters; a solver is passed through.

    Raises:
        InputError: unknown name, unknown hyper-parameter, or hyper-parameters beside a finished solver.
    """
    if isinstance(method, Solver):
        if hyper:
            raise InputError(f"{', '.join(hyper)}: set these when making {type(method).__name__}, not beside it")
        return method
    found = entry(method if "." in method else f"solve.{method}")
    fields = [field.name for field in dataclasses.fields(found.target)]
    for key in hyper:
        if key not in fields:
            raise unknown(f"option of {method}:", key, fields, f"It takes {', '.join(fields) or 'none'}.")
    return found.build(**hyper)


def start(x0: Any, name: str = "x0") -> Tensor:
    """A private copy of the start, checked to be a floating-point tensor.

    Raises:
        InputError: it is not a tensor of float32 or float64.
        DivergedError: it has entries that are not finite.
    """
    if not isinstance(x0, Tensor) or x0.dtype not in (torch.float32, torch.float64):
        got = f"{x0.dtype}" if isinstance(x0, Tensor) else type(x0).__name__
        raise InputError(f"{name} must be a tensor of float64 or float32, got {got}; convert it, e.g. {name}.double()")
    return finite(name, x0.detach().clone())


def require_smooth(problem: Minimisation, card: Card) -> None:
    """Refuse a problem with a nonsmooth term, for methods that would silently ignore it.

    Raises:
        MismatchError: the problem has a proximal map.
    """
    if "prox" in problem.offers():
        raise MismatchError(f"{card.id} ignores the problem's nonsmooth term; take proximal-gradient or fista")


def finite(name: str, value: Tensor) -> Tensor:
    """`value` if all of it is finite.

    Raises:
        DivergedError: naming what left the finite numbers.
    """
    if not bool(torch.isfinite(value).all()):
        raise DivergedError(f"{name} has entries that are not finite")
    return value
