"""Smoothness constants of a federation, by power iteration."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.kinds.federate import Federation
from hasten.numerics import keys


def smoothness(problem: Federation, x: Tensor | None = None, iterations: int = 100) -> tuple[float, Tensor]:
    """Largest Hessian eigenvalue (by magnitude) of the objective and of each client, `(L, L_i [n])`.

    Power iteration on Hessian-vector products at `x` (the start if not given), on one and the same mini-batch per
    client: exact for quadratics, a local estimate otherwise. Costs `2 n iterations` products, counted as `hvp`.
    """
    check.integer("iterations", iterations, 1)
    x = problem.x0 if x is None else x
    key = keys.key(7)
    v = keys.normal(keys.fold(keys.key(1), torch.arange(problem.n)), len(x), x.dtype)
    mean = v[0]
    each, whole = torch.zeros(problem.n, dtype=x.dtype), 0.0
    for _ in range(iterations):
        v = v / torch.linalg.vector_norm(v, dim=1, keepdim=True).clamp_min(
            1e-300 if x.dtype == torch.float64 else 1e-30
        )
        mean = mean / torch.linalg.vector_norm(mean).clamp_min(1e-30)
        v = problem.hvp(x, v, key=key)
        mean = problem.weights @ problem.hvp(x, mean.expand(problem.n, -1), key=key)
        each, whole = torch.linalg.vector_norm(v, dim=1), float(torch.linalg.vector_norm(mean))
    return whole, each
