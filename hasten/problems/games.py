"""Games: a bilinear one with many scales, and a matrix game over simplices."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.saddle import Saddle, duality_gap
from hasten.core.problem import Problem
from hasten.numerics.projection import project_simplex


@ready("bilinear-game", Saddle.kind)
def bilinear_game(dim: int = 60, smallest: float = 1e-5) -> Problem:
    """min_x max_y x'Ay from ones, A diagonal with singular values spread from `smallest` to 1 on a log scale.

    Every method that treats all directions alike behaves as on any A with these singular values. The metric is
    `|F(z)|`.

    Args:
        dim: decisions of each player.
        smallest: least singular value, in (0, 1].
    """
    check.integer("dim", dim, 1)
    check.real("smallest", smallest, 0.0, 1.0, open_low=True)

    def build(seed: int) -> Saddle:
        values = torch.logspace(math.log10(smallest), 0.0, dim, dtype=torch.float64)

        def operator(z: Tensor) -> Tensor:
            x, y = z[:dim], z[dim:]
            return torch.cat((values * y, -values * x))

        z0 = torch.ones(2 * dim, dtype=torch.float64)
        return Saddle(operator, z0, lipschitz=1.0, players=(dim, dim))

    return Problem(
        name="bilinear-game",
        kind=Saddle.kind,
        build=build,
        measures="operator norm |F(z)|",
        target=0.1,
        budget=3000,
        every=10,
        summary="Bilinear game with singular values from 1e-5 to 1: no method without anchoring is fast on it.",
        baseline="solve.extragradient",
    )


@ready("matrix-game", Saddle.kind)
def matrix_game(dim: int = 10, payoffs: str = "normal") -> Problem:
    """min_x max_y x'Ay over two simplices from their centres, A with random entries; the metric is the duality gap.

    Args:
        dim: pure strategies of each player.
        payoffs: `normal`: standard normal entries; `uniform`: from [0, 1], where the mean payoff, irrelevant to
            the game, dominates the Lipschitz constant.
    """
    check.integer("dim", dim, 2)
    check.one_of("payoffs", payoffs, ("normal", "uniform"))
    draw = torch.randn if payoffs == "normal" else torch.rand

    def build(seed: int) -> Saddle:
        generator = torch.Generator().manual_seed(seed)
        matrix = draw(dim, dim, generator=generator, dtype=torch.float64)

        def operator(z: Tensor) -> Tensor:
            return torch.cat((matrix @ z[dim:], -(matrix.T @ z[:dim])))

        def project(z: Tensor) -> Tensor:
            return torch.cat((project_simplex(z[:dim]), project_simplex(z[dim:])))

        return Saddle(
            operator,
            torch.full((2 * dim,), 1.0 / dim, dtype=torch.float64),
            projection=project,
            lipschitz=float(torch.linalg.matrix_norm(matrix, 2)),
            players=(dim, dim),
            metric=duality_gap(matrix),
        )

    return Problem(
        name="matrix-game",
        kind=Saddle.kind,
        build=build,
        measures="duality gap",
        target=1e-2,
        budget=3000,
        every=5,
        summary="Zero-sum game on a random payoff matrix, strategies on the simplex.",
        baseline="solve.extragradient",
    )
