"""Slow start, fast decay: a learning rate for a short adversarial fine-tuning of a trained network."""

from __future__ import annotations

import math

from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal, Real
from hasten.optim.adapter import KINDS, schedule
from hasten.optim.schedules.base import Schedule

CARD = Card(
    name="slow-start-fast-decay",
    family="optim",
    paper_id=434,
    title="A Simple Fine-tuning Is All You Need: Towards Robust Deep Learning Via Adversarial Fine-tuning",
    authors="Jeddi, Shafiee, Wong",
    year=2020,
    arxiv="2012.13628",
    summary="Raises the learning rate slowly to a peak in the middle of a short fine-tuning, then lets it fall fast.",
    cost="None.",
    when="A trained network is fine-tuned for a few epochs on something harder, such as adversarial examples.",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "schedule = hasten.optim.SlowStartFastDecay(optimizer, total_steps{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "peak": Real(0.2, 0.7)},
)


@schedule(CARD)
class SlowStartFastDecay(Schedule):
    """Linear rise from `start * lr` to `lr`, then exponential decay; for any optimizer.

        t < peak T:  start + (1 - start) t / (peak T);   later:  exp(-gamma (t - peak T) / ((1 - peak) T))

    The slow start keeps what the network knows, the fast decay keeps it from overfitting to the new task. The last
    rate, `exp(-gamma)` of the peak, stays in force.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        total_steps: steps T of the fine-tuning (or epochs, if it is stepped once per epoch).
        peak: share of the steps before the peak, in [0, 1).
        start: first rate relative to the peak, in [0, 1].
        gamma: how far the rate decays, >= 0.
        last_epoch: steps already taken, -1 for none.

    Cost: none. Source: Jeddi, Shafiee, Wong (2020), arXiv 2012.13628.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        peak: float = 0.5,
        start: float = 0.1,
        gamma: float = 5.0,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = check.integer("total_steps", total_steps, 1)
        self.peak = check.fraction("peak", peak)
        self.start = check.real("start", start, 0.0, 1.0)
        self.gamma = check.nonnegative("gamma", gamma)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        turn = self.peak * self.total_steps
        if step < turn:
            return self.start + (1 - self.start) * step / turn
        return math.exp(-self.gamma * min((step - turn) / (self.total_steps - turn), 1.0))
