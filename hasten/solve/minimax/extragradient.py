"""The extragradient family: one loop whose options are the look-ahead point, the anchor and the final update."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.core.kinds.saddle import Saddle
from hasten.solve.base import Solver, finite, solver, start


@dataclass
class GameState:
    """Where a method for games stands.

    Attributes:
        x: the current answer, feasible.
        z: the base point.
        anchor: the start, to which anchored methods pull back.
        last: F at the last look-ahead point.
        t: number of the next step, from 1.
        variation: sum over the steps of the squared change of `last`.
        lr: step size before adaptation.
    """

    x: Tensor
    z: Tensor
    anchor: Tensor
    last: Tensor
    t: int
    variation: float
    lr: float


@dataclass(frozen=True)
class ExtragradientMethod(Solver[Saddle, GameState]):
    """One look-ahead and one update per step, both from the base point z:

        q   = (z_1 - z) / (t + 1)  if anchored, else 0
        zh  = P(z - lr F(y) + q)   with y = z, or the last look-ahead point if `past`
        z+  = P(z - lr F(zh) + q)

    Subclasses set the options; `safe_step` is the largest `lr L` that their theory allows, or nearly so.

    Args:
        lr: step size, > 0; `safe_step / L` with the problem's Lipschitz constant L if not given.
    """

    lr: float | None = None
    past: ClassVar[bool] = False
    anchored: ClassVar[bool] = False
    safe_step: ClassVar[float] = 0.7

    def __post_init__(self) -> None:
        if self.lr is not None:
            check.positive("lr", self.lr)

    def init(self, problem: Saddle, generator: torch.Generator) -> GameState:
        z = start(problem.x0)
        last = finite("the operator", problem.operator(z)) if self.past else torch.zeros_like(z)
        return GameState(z, z, z, last, 1, 0.0, self._step_size(problem))

    def step(self, problem: Saddle, state: GameState) -> GameState:
        z, lr = state.z, self.rate(state)
        base = z + (state.anchor - z) / (state.t + 1) if self.anchored else z
        before = state.last if self.past else finite("the operator", problem.operator(z))
        half = problem.project(base - lr * before)
        value = finite("the operator", problem.operator(half))
        z, answer = self.update(problem, base, half, before, value, lr)
        variation = state.variation + float((value - before).square().sum())
        return GameState(finite("z", answer), z, state.anchor, value, state.t + 1, variation, state.lr)

    def rate(self, state: GameState) -> float:
        """Step size of the coming step."""
        return state.lr

    def update(
        self, problem: Saddle, base: Tensor, half: Tensor, before: Tensor, value: Tensor, lr: float
    ) -> tuple[Tensor, Tensor]:
        """The next base point and the answer."""
        z = problem.project(base - lr * value)
        return z, z

    def _step_size(self, problem: Saddle) -> float:
        if self.lr is not None:
            return float(self.lr)
        if problem.lipschitz is None:
            raise InputError(
                f"{type(self).__name__}: give lr, or a problem that knows the Lipschitz constant of its operator "
                f"(lipschitz=L); lr is then {self.safe_step:.2g}/L"
            )
        return self.safe_step / problem.lipschitz


@solver(
    Card(
        name="extragradient",
        family="solve",
        title="The extragradient method for finding saddle points and other problems",
        authors="G. M. Korpelevich",
        year=1976,
        summary="Looks one gradient step ahead and moves from the old point with the operator found there.",
        cost="two operator calls and two projections per step",
        when="The safe default on monotone games when operator calls are cheap.",
        kinds=("saddle",),
        search_space={"lr": LogReal(1e-2, 1.0)},
        use="from hasten.solve import saddle_point\n\n"
        'result = saddle_point(F, z0, method="extragradient", lipschitz=L{hyper})',
    )
)
@dataclass(frozen=True)
class Extragradient(ExtragradientMethod):
    """Extragradient: `zh = P(z - lr F(z))`, `z+ = P(z - lr F(zh))`; lr below 1/L."""


@solver(
    Card(
        name="past-extragradient",
        family="solve",
        title="A modification of the Arrow-Hurwicz method for search of saddle points",
        authors="L. D. Popov",
        year=1980,
        summary="Extragradient that reuses the last look-ahead operator, so that a step needs one call.",
        cost="one operator call and two projections per step",
        when="Monotone games with expensive operators.",
        kinds=("saddle",),
        search_space={"lr": LogReal(1e-2, 1.0)},
        use="from hasten.solve import saddle_point\n\n"
        'result = saddle_point(F, z0, method="past-extragradient", lipschitz=L{hyper})',
    )
)
@dataclass(frozen=True)
class PastExtragradient(ExtragradientMethod):
    """Popov's method: `zh = P(z - lr F(zh_last))`, `z+ = P(z - lr F(zh))`; lr at most 1/(2L).

    Papers on last-iterate convergence call this form the optimistic gradient method.
    """

    past: ClassVar[bool] = True
    safe_step: ClassVar[float] = 0.5


@solver(
    Card(
        name="optimistic-gradient",
        family="solve",
        title="A forward-backward splitting method for monotone inclusions without cocoercivity",
        authors="Y. Malitsky, M. K. Tam",
        year=2020,
        arxiv="1808.04162",
        summary="A gradient step corrected by the operator's last change; one call and one projection per step.",
        cost="one operator call and one projection per step",
        when="Monotone games whose operator and projection are both expensive.",
        kinds=("saddle",),
        search_space={"lr": LogReal(1e-2, 1.0)},
        use="from hasten.solve import saddle_point\n\n"
        'result = saddle_point(F, z0, method="optimistic-gradient", lipschitz=L{hyper})',
    )
)
@dataclass(frozen=True)
class OptimisticGradient(ExtragradientMethod):
    """Optimistic gradient: `zh = P(z - lr F(zh_last))`, `z+ = zh + lr (F(zh_last) - F(zh))`; lr at most 1/(2L).

    The answer is zh, which is feasible: `zh+ = P(zh - 2 lr F(zh) + lr F(zh_last))`. Without constraints the base
    points are those of `PastExtragradient`.
    """

    past: ClassVar[bool] = True
    safe_step: ClassVar[float] = 0.5

    def update(
        self, problem: Saddle, base: Tensor, half: Tensor, before: Tensor, value: Tensor, lr: float
    ) -> tuple[Tensor, Tensor]:
        return half + lr * (before - value), half


@solver(
    Card(
        name="extra-anchored-gradient",
        family="solve",
        title="Accelerated Algorithms for Smooth Convex-Concave Minimax Problems with O(1/k^2) Rate on Squared "
        "Gradient Norm",
        authors="T. Yoon, E. K. Ryu",
        year=2021,
        arxiv="2102.07922",
        summary="Extragradient with a pull back to the start that fades as 1/t.",
        cost="two operator calls and two projections per step; stores the start",
        when="The last iterate of a badly conditioned monotone game must have a small operator norm.",
        kinds=("saddle",),
        search_space={"lr": LogReal(1e-2, 1.0)},
        use="from hasten.solve import saddle_point\n\n"
        'result = saddle_point(F, z0, method="extra-anchored-gradient", lipschitz=L{hyper})',
    )
)
@dataclass(frozen=True)
class ExtraAnchoredGradient(ExtragradientMethod):
    """Extra anchored gradient: extragradient from the base `z + (z_1 - z)/(t+1)`; lr at most 1/(sqrt(3) L).

    `|F(z_t)|` falls as 1/t, against 1/sqrt(t) without the anchor.
    """

    anchored: ClassVar[bool] = True
    safe_step: ClassVar[float] = 1.0 / math.sqrt(3.0)
