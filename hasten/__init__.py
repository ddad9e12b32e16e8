"""hasten: published methods that make iterative computation arrive sooner, raced on your own problem."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_WHERE = {
    "Budget": "hasten.core.run",
    "Card": "hasten.core.card",
    "Choice": "hasten.core.card",
    "Instance": "hasten.core.problem",
    "Integer": "hasten.core.card",
    "LogReal": "hasten.core.card",
    "Method": "hasten.core.method",
    "Problem": "hasten.core.problem",
    "Real": "hasten.core.card",
    "Result": "hasten.core.result",
    "Trace": "hasten.core.trace",
    "federation": "hasten.core.kinds.federate",
    "get": "hasten.core.registry",
    "methods": "hasten.core.registry",
    "minimisation": "hasten.core.kinds.minimise",
    "problem": "hasten.core.catalogue",
    "race": "hasten.core.race",
    "register": "hasten.core.registry",
    "registration": "hasten.core.kinds.register",
    "run": "hasten.core.run",
    "saddle": "hasten.core.kinds.saddle",
    "sampling": "hasten.core.kinds.sample",
    "training": "hasten.core.kinds.train",
    "transport": "hasten.core.kinds.transport",
}
_PACKAGES = ("claims", "diffusion", "distributed", "numerics", "optim", "problems", "solve")

__all__ = ["__version__", *_PACKAGES, *_WHERE]

if TYPE_CHECKING:
    from hasten import diffusion, distributed, numerics, optim, problems, solve
    from hasten.core.card import Card, Choice, Integer, LogReal, Real
    from hasten.core.catalogue import problem
    from hasten.core.claim import claims
    from hasten.core.kinds.federate import federation
    from hasten.core.kinds.minimise import minimisation
    from hasten.core.kinds.register import registration
    from hasten.core.kinds.saddle import saddle
    from hasten.core.kinds.sample import sampling
    from hasten.core.kinds.train import training
    from hasten.core.kinds.transport import transport
    from hasten.core.method import Method
    from hasten.core.problem import Instance, Problem
    from hasten.core.race import race
    from hasten.core.registry import get, methods, register
    from hasten.core.result import Result
    from hasten.core.run import Budget, run
    from hasten.core.trace import Trace


def __getattr__(name: str) -> Any:
    """Load a public name, or a family, when it is first touched."""
    if name in _WHERE:
        value = getattr(importlib.import_module(_WHERE[name]), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f"hasten.{name}")
    else:
        raise AttributeError(f"module 'hasten' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
