"""Losses that change from step to step: the problem on which Adam goes to the worst point."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.minimise import Minimisation
from hasten.core.problem import Problem


class LinearLosses(Minimisation):
    """One variable in [-1, 1] and the losses `f_t(x) = slope_t x`, t = 1, 2, ..., whose mean slope is positive.

    The best point is therefore -1, and the metric is the distance from it. `prox` is the projection on [-1, 1]; who
    does not project is measured at the projection.

    Args:
        slope: `(t, generator)` -> `slope_t`.
        mean: mean slope.
        generator: source of the randomness, if there is any.
    """

    def __init__(self, slope: Callable[[int, torch.Generator], float], mean: float, generator: torch.Generator) -> None:
        super().__init__(
            lambda x: mean * x.sum(),
            torch.zeros(1, dtype=torch.float64),
            noisy_gradient=lambda x, source: torch.full_like(x, slope(self.t, source)),
            noisy_fun=lambda x, source: slope(self.t, source) * x.sum(),
            nonsmooth=lambda x: x.new_tensor(0.0 if float(x.abs().max()) <= 1 else math.inf),
            prox=lambda x, step: x.clamp(-1.0, 1.0),
            metric=lambda x: float(x.clamp(-1.0, 1.0).sum()) + 1.0,
            generator=generator,
        )
        self.t = 0

    def _sample(self, fresh: bool) -> torch.Generator:
        self.t += fresh or self.t == 0
        return super()._sample(fresh)


@ready("amsgrad-counterexample", kind="minimise")
def amsgrad_counterexample(C: float = 3.0, stochastic: bool = False) -> Problem:
    """Linear losses on [-1, 1] with rare large gradients, on which Adam may go to the worst point; optimum -1.

    The slope is `C` at every third step and -1 at the others: Adam with `b1 = 0` and `b2 = 1 / (1 + C^2)` ends at +1.
    The stochastic form has slope 1010 with probability 0.01 and -10 otherwise, and needs millions of steps. Reddi,
    Kale and Kumar (2018), arXiv 1904.09237.

    Args:
        C: the large slope of the periodic form, above 2.
        stochastic: the stochastic form, in which `C` plays no part.
    """
    check.real("C", C, 2.0, open_low=True)

    def periodic(t: int, generator: torch.Generator) -> float:
        return C if t % 3 == 1 else -1.0

    def drawn(t: int, generator: torch.Generator) -> float:
        return 1010.0 if float(torch.rand((), generator=generator)) < 0.01 else -10.0

    def build(seed: int) -> LinearLosses:
        generator = torch.Generator().manual_seed(seed)
        return LinearLosses(drawn, 0.2, generator) if stochastic else LinearLosses(periodic, (C - 2) / 3, generator)

    return Problem(
        name="amsgrad-counterexample",
        kind="minimise",
        build=build,
        measures="distance from the optimum",
        target=0.05,
        budget=9000,
        every=10,
        summary="linear losses on [-1, 1], slope "
        + ("1010 with probability 0.01, else -10" if stochastic else f"{C:g} at every third step, else -1"),
    )
