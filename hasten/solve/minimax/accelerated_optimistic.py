"""Accelerated optimistic gradient: past extragradient with an anchor."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.kinds.saddle import Saddle
from hasten.solve.base import solver
from hasten.solve.minimax.extragradient import ExtragradientMethod, GameState


@solver(
    Card(
        name="accelerated-optimistic-gradient",
        family="solve",
        title="Doubly Optimal No-Regret Learning in Monotone Games",
        authors="Y. Cai, W. Zheng",
        year=2023,
        arxiv="2301.13120",
        paper_id=198,
        summary="Optimistic gradient with a fading pull back to the start: last iterate at rate 1/T, one call a step.",
        cost="one operator call and two projections per step; stores the start and the last operator value",
        when="Badly conditioned monotone games, bilinear ones above all, when the last iterate counts.",
        kinds=("saddle",),
        search_space={"lr": LogReal(1e-2, 1.0)},
        use="from hasten.solve import saddle_point\n\n"
        'result = saddle_point(F, z0, method="accelerated-optimistic-gradient", lipschitz=L{hyper})',
    )
)
@dataclass(frozen=True)
class AcceleratedOptimisticGradient(ExtragradientMethod):
    """Accelerated optimistic gradient, for t = 1, 2, ... from `z_1 = zh_0 =` the start:

        q   = (z_1 - z_t) / (t + 1)
        zh  = P(z_t - lr F(zh_last) + q)
        z+  = P(z_t - lr F(zh) + q)

    The gap of the last iterate falls as 1/T (1/sqrt(T) for extragradient and optimistic gradient). Every player
    can run it alone on its own block. On strongly monotone games, and late on polyhedral ones, the unanchored
    methods turn linear and overtake it.

    Args:
        lr: step size, > 0; `1/(sqrt(6) L)` if not given. In mode `online` it is the diameter-like factor of the
            adaptive step, 1 if not given.
        mode: `game`: a constant step. `online`: the operator may be an adversary's,
            `lr_t = lr / sqrt(1 + sum_s |F(zh_s) - F(zh_{s-1})|^2)`, which keeps the regret O(sqrt(T)); the answer
            is then the point played last.
    """

    mode: str = "game"
    past: ClassVar[bool] = True
    anchored: ClassVar[bool] = True
    safe_step: ClassVar[float] = 1.0 / math.sqrt(6.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("mode", self.mode, ("game", "online"))

    def rate(self, state: GameState) -> float:
        return state.lr / math.sqrt(1.0 + state.variation) if self.mode == "online" else state.lr

    def _step_size(self, problem: Saddle) -> float:
        return 1.0 if self.mode == "online" and self.lr is None else super()._step_size(problem)
