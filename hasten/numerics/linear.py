"""Linear systems: factorisations that refuse what they cannot do, and preconditioned conjugate gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from hasten.core.errors import DivergedError, HastenError


class NotConvexError(HastenError, ArithmeticError):
    """A matrix that must be positive definite is singular or indefinite; `smallest` is its smallest eigenvalue."""

    def __init__(self, what: str, smallest: float) -> None:
        super().__init__(
            f"{what} is not positive definite: its smallest eigenvalue is {smallest:.3g}. "
            "Add a ridge (mu/2 |x|^2) to the objective, or take a method that does not need convexity."
        )
        self.smallest = smallest


def cholesky(matrix: Tensor, what: str = "the Hessian") -> Tensor:
    """Lower Cholesky factor of a symmetric positive definite matrix.

    Args:
        matrix: (d, d); only its lower triangle is read.
        what: its name in messages.

    Raises:
        NotConvexError: it is indefinite, or singular to working precision.
        DivergedError: it has entries that are not finite.
    """
    if not bool(torch.isfinite(matrix).all()):
        raise DivergedError(f"{what} has entries that are not finite")
    factor, info = torch.linalg.cholesky_ex(matrix)
    pivots = factor.diagonal()
    rounding = len(matrix) * torch.finfo(matrix.dtype).eps
    # Pivots screen cheaply; only suspicious ones pay for the eigenvalues that decide.
    if int(info) == 0 and float(pivots.min()) ** 2 > 100 * rounding * float(pivots.max()) ** 2:
        return factor
    eigenvalues = torch.linalg.eigvalsh(matrix)
    smallest, largest = float(eigenvalues[0]), float(eigenvalues[-1])
    if int(info) != 0 or smallest <= rounding * largest:
        raise NotConvexError(what, smallest)
    return factor


def cholesky_solve(factor: Tensor, b: Tensor) -> Tensor:
    """Solution of `factor factor' x = b` for one right-hand side (d,)."""
    return torch.cholesky_solve(b.unsqueeze(-1), factor).squeeze(-1)


class Solution(NamedTuple):
    """What an iterative linear solver returns: the solution, its products with the matrix, whether `tol` was met."""

    x: Tensor
    products: int
    converged: bool


def conjugate_gradient(
    product: Callable[[Tensor], Tensor],
    b: Tensor,
    *,
    diagonal: Tensor | None = None,
    tol: float = 1e-8,
    max_iter: int | None = None,
) -> Solution:
    """Conjugate gradients for `A x = b` with A symmetric positive definite, started at 0.

    Args:
        product: `v -> A v`.
        diagonal: diagonal of A, taken as the preconditioner.
        tol: relative residual `|b - A x| / |b|` at which to stop.
        max_iter: most products; `10 len(b)` if not given.
    """
    x = torch.zeros_like(b)
    r = b.clone()
    z = r if diagonal is None else r / diagonal
    p, rz = z, torch.dot(r, z)
    goal = tol * float(b.norm())
    limit = max_iter if max_iter is not None else 10 * len(b)
    for products in range(limit + 1):
        if float(r.norm()) <= goal:
            return Solution(x, products, True)
        if products == limit:
            break
        ap = product(p)
        curvature = torch.dot(p, ap)
        if not float(curvature) > 0:
            return Solution(x, products + 1, False)
        alpha = rz / curvature
        x = x + alpha * p
        r = r - alpha * ap
        z = r if diagonal is None else r / diagonal
        rz, last = torch.dot(r, z), rz
        p = z + (rz / last) * p
    return Solution(x, limit, False)
