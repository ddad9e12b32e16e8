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
    from hasten.solve.first_order.proximal import FISTA as FISTA
    from hasten.solve.first_order.proximal import GradientDescent as GradientDescent
    from hasten.solve.first_order.proximal import Nesterov as Nesterov
    from hasten.solve.first_order.proximal import ProximalGradient as ProximalGradient
    from hasten.solve.minimax.accelerated_optimistic import (
        AcceleratedOptimisticGradient as AcceleratedOptimisticGradient,
    )
    from hasten.solve.minimax.extragradient import ExtraAnchoredGradient as ExtraAnchoredGradient
    from hasten.solve.minimax.extragradient import Extragradient as Extragradient
    from hasten.solve.minimax.extragradient import OptimisticGradient as OptimisticGradient
    from hasten.solve.minimax.extragradient import PastExtragradient as PastExtragradient
    from hasten.solve.registration.icp import ICP as ICP
    from hasten.solve.registration.icp import FastICP as FastICP
    from hasten.solve.second_order.damped_newton import AICN as AICN
    from hasten.solve.second_order.damped_newton import ArmijoNewton as ArmijoNewton
    from hasten.solve.second_order.damped_newton import Newton as Newton
    from hasten.solve.second_order.damped_newton import RootNewton as RootNewton
    from hasten.solve.second_order.damped_newton import UniversalNewton as UniversalNewton
    from hasten.solve.transport.sinkhorn import Sinkhorn as Sinkhorn
    from hasten.solve.transport.sinkhorn import SinkhornNewtonSparse as SinkhornNewtonSparse
    from hasten.solve.transport.sinkhorn import sinkhorn as sinkhorn
    from hasten.solve.transport.sinkhorn import sinkhorn_newton as sinkhorn_newton

_MODULES = {
    "base": ("Solver", "solver"),
    "drive": ("SolveResult", "minimize", "saddle_point", "solve"),
    "first_order.proximal": ("FISTA", "GradientDescent", "Nesterov", "ProximalGradient"),
    "minimax.accelerated_optimistic": ("AcceleratedOptimisticGradient",),
    "minimax.extragradient": ("ExtraAnchoredGradient", "Extragradient", "OptimisticGradient", "PastExtragradient"),
    "registration.icp": ("ICP", "FastICP"),
    "second_order.damped_newton": ("AICN", "ArmijoNewton", "Newton", "RootNewton", "UniversalNewton"),
    "transport.sinkhorn": ("Sinkhorn", "SinkhornNewtonSparse", "sinkhorn", "sinkhorn_newton"),
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
