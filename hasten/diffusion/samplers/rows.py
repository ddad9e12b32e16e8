"""Solvers as rows of coefficients, for methods that change what a solver does with the network's outputs."""

from __future__ import annotations

from hasten.core.errors import InputError
from hasten.diffusion.base import Sampler
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.dpm_solver import DPMSolver

_ORDER_ONE = DPMSolver(order=1)


def rows_of(base: Sampler) -> Sampler:
    """The solver in the form whose steps are rows; DDIM is a DPM-Solver of order 1."""
    if isinstance(base, DDIM):
        if base.eta > 0.0:
            raise InputError(f"base must be deterministic, got DDIM with eta={base.eta:g}; take eta=0")
        return _ORDER_ONE
    if (
        not isinstance(base, Sampler)
        or type(base).advance is not Sampler.advance
        or type(base).step is not Sampler.step
    ):
        raise InputError(f"base must be a solver with a fixed plan of rows: DDIM, DEIS or DPMSolver; got {base!r}")
    return base
