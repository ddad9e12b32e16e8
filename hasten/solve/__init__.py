"""Solvers for explicit problems: minimising, games, optimal transport, registration."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hasten.solve.base import Solver as Solver
    from hasten.solve.base import solver as solver
    from hasten.solve.drive import SolveResult as SolveResult
    from hasten.solve.drive import minimize as minimize
    from hasten.solve.drive import saddle_point as saddle_point
    from hasten.solve.drive import solve as solve
    from hasten.solve.second_order.damped_newton import AICN as AICN
    from hasten.solve.second_order.damped_newton import ArmijoNewton as ArmijoNewton
    from hasten.solve.second_order.damped_newton import Newton as Newton
    from hasten.solve.second_order.damped_newton import RootNewton as RootNewton
    from hasten.solve.second_order.damped_newton import UniversalNewton as UniversalNewton

_MODULES = {
    "base": ("Solver", "solver"),
    "drive": ("SolveResult", "minimize", "saddle_point", "solve"),
    "second_order.damped_newton": ("AICN", "ArmijoNewton", "Newton", "RootNewton", "UniversalNewton"),
}
_WHERE = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first touched."""
    if name not in _WHERE:
        raise AttributeError(f"module 'hasten.solve' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"hasten.solve.{_WHERE[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_WHERE})
