"""Functions with known minima: quadratics of any condition number, the Rosenbrock valley."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.minimise import Minimisation
from hasten.core.problem import Problem


@ready("quadratic", kind="minimise")
def quadratic(dim: int = 50, cond: float = 100.0, noise: float = 0.0, rotated: bool = False) -> Problem:
    """Quadratic with curvatures spaced evenly on a log scale from 1 to `cond`, start drawn by the seed.

    `f(x) = <x, H x> / 2`, least value 0, start standard normal, float64.

    Args:
        dim: number of variables.
        cond: condition number, at least 1; also the largest curvature.
        noise: standard deviation of the Gaussian noise on every entry of the gradient.
        rotated: eigenvectors drawn by the seed instead of the coordinate axes.
    """
    check.integer("dim", dim, 1)
    check.real("cond", cond, 1.0)
    check.nonnegative("noise", noise)
    spectrum = torch.logspace(0, torch.log10(torch.tensor(float(cond))).item(), dim, dtype=torch.float64)

    def build(seed: int) -> Minimisation:
        generator = torch.Generator().manual_seed(seed)
        start = torch.randn(dim, generator=generator, dtype=torch.float64)
        matrix = torch.diag(spectrum)
        if rotated:
            basis = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64)).Q
            matrix = basis @ matrix @ basis.T

        def times(x: Tensor) -> Tensor:
            return matrix @ x if rotated else spectrum * x

        def sampled(x: Tensor, source: torch.Generator) -> Tensor:
            return times(x) + noise * torch.randn(dim, generator=source, dtype=x.dtype)

        return Minimisation(
            lambda x: x.dot(times(x)) / 2,
            start,
            gradient=times,
            hessian=lambda x: matrix,
            noisy_gradient=sampled if noise else None,
            minimum=0.0,
            generator=generator,
        )

    return Problem(
        name="quadratic",
        kind="minimise",
        build=build,
        measures="objective gap",
        target=1.0 if noise else 1e-6,
        budget=2000,
        every=1,
        summary=f"{dim} variables, condition number {cond:g}" + (f", gradient noise {noise:g}" if noise else ""),
    )


@ready("rosenbrock", kind="minimise")
def rosenbrock(dim: int = 2) -> Problem:
    """Rosenbrock's curved valley from the usual start (-1.2, 1, -1.2, 1, ...); least value 0 at (1, ..., 1).

    `f(x) = sum_i 100 (x_{i+1} - x_i^2)^2 + (1 - x_i)^2`, float64.

    Args:
        dim: number of variables, at least 2.
    """
    check.integer("dim", dim, 2)

    def value(x: Tensor) -> Tensor:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def gradient(x: Tensor) -> Tensor:
        bend = x[1:] - x[:-1] ** 2
        left = -400 * x[:-1] * bend - 2 * (1 - x[:-1])
        return torch.cat([left, left.new_zeros(1)]) + torch.cat([bend.new_zeros(1), 200 * bend])

    def build(seed: int) -> Minimisation:
        start = torch.ones(dim, dtype=torch.float64)
        start[::2] = -1.2
        return Minimisation(value, start, gradient=gradient, minimum=0.0, generator=torch.Generator().manual_seed(seed))

    return Problem(
        name="rosenbrock",
        kind="minimise",
        build=build,
        measures="objective gap",
        target=1e-4,
        budget=5000,
        every=1,
        summary=f"curved valley in {dim} variables",
    )
