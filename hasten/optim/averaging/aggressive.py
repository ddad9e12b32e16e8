"""Aggressive weight averaging: a mean over every update from the start, against the chance of the random seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, Parts, companion
from hasten.optim.averaging.weights import PolynomialAverager

CARD = Card(
    name="aswa",
    family="optim",
    paper_id=331,
    title="On Model Stability as a Function of Random Seed",
    authors="Madhyastha, Jain",
    year=2019,
    arxiv="1909.10447",
    summary="Evaluates the mean of the weights after every update from the start; results depend less on the seed.",
    cost="One copy of the weights, one pass over them per step; filtered, one norm more.",
    when="Results fluctuate from seed to seed, e.g. with small or noisy data, at a rate that does not decay.",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "average = hasten.optim.AggressiveSWA(model{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "filter": Choice(None, "norm")},
)


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own = dict(hyper)
    optimizer = torch.optim.AdamW(model.parameters(), lr=own.pop("lr", 1e-3))
    average = AggressiveSWA(model, **own)
    return Parts(optimizer, (average.step,), lambda: average.best_model)


@companion(CARD, _assemble)
class AggressiveSWA(PolynomialAverager):
    """Mean of the weights after every update, the first included (ASWA); works beside any optimizer.

        W <- (n W + w) / (n + 1),  n <- n + 1

    With `filter="norm"` (NASWA) an update is left out unless `|w - W|` exceeds the mean of these distances at all
    earlier calls: what has hardly moved away from the average adds nothing to it.
    While the weights still drift away from where they began, every update passes.

    The early weights stay in the mean for ever, so give training time to outweigh them; `LatestWeightAverage` forgets.

    Args:
        model: the network in training.
        filter: None for every update, or `norm`.

    Cost: one copy of the weights, one pass over them per step. Source: Madhyastha, Jain (2019), arXiv 1909.10447.
    """

    def __init__(self, model: nn.Module, filter: str | None = None) -> None:
        self.filter = check.one_of("filter", filter, (None, "norm"))
        self.recorded = 0
        self.sum_of_norms = 0.0
        super().__init__(model, gamma=0.0)

    @torch.no_grad()
    def step(self) -> None:
        if self.filter is None or self._far():
            super().step()

    def _far(self) -> bool:
        """Whether the weights are farther from the average than they used to be; records how far they are."""
        if not self.averages:
            return True
        pairs = zip(self.model.parameters(), self.averaged_model.parameters())
        norm = math.hypot(*(float(torch.linalg.vector_norm(live - mean)) for live, mean in pairs))
        far = not self.recorded or norm > self.sum_of_norms / self.recorded
        self.recorded += 1
        self.sum_of_norms += norm
        return far

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "recorded": self.recorded, "sum_of_norms": self.sum_of_norms}

    @torch.no_grad()
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self.recorded, self.sum_of_norms = state_dict["recorded"], state_dict["sum_of_norms"]


@dataclass(frozen=True)
class Stability:
    """How a metric varies over seeds.

    Attributes:
        mean: mean over the seeds.
        std: standard deviation (divisor n - 1).
        low, high: least and greatest value.
    """

    mean: float
    std: float
    low: float
    high: float


def seed_stability(metric_values: Iterable[float]) -> Stability:
    """How much a metric depends on the random seed, from its values over at least two seeds."""
    values = [float(value) for value in metric_values]
    if len(values) < 2 or not all(map(math.isfinite, values)):
        raise InputError(f"metric_values must be at least two finite numbers, got {values}")
    return Stability(statistics.fmean(values), statistics.stdev(values), min(values), max(values))
