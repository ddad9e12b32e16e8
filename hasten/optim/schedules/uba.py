"""Budget-aware schedule: one number turns cosine decay into anything from a late cliff to an early drop."""

from __future__ import annotations

import math

from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, schedule
from hasten.optim.schedules.base import Schedule

CARD = Card(
    name="uba",
    family="optim",
    paper_id=266,
    title="Stepsize anything: A unified learning rate schedule for budgeted-iteration training",
    authors="Tang et al.",
    year=2025,
    arxiv="2505.24452",
    summary="Lowers the learning rate over a known budget along a curve whose shape is set by one number.",
    cost="None.",
    when="The number of steps is fixed and small, and one shape parameter may be tuned beside the learning rate.",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "schedule = hasten.optim.UBASchedule(optimizer, total_steps{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "phi": Choice(0.5, 1.0, 2.0, 5.0)},
)


@schedule(CARD)
class UBASchedule(Schedule):
    """Unified budget-aware schedule of the learning rate; for any optimizer.

        c = cos(pi t / T);  lr = lr_min + (lr_max - lr_min) * 2 (1 + c) / (2 phi + (2 - phi) (1 + c))

    `phi = 2` is cosine decay; smaller values stay high for longer (towards 0: constant, then a cliff), larger ones drop
    early. Badly conditioned problems and fine-tuning with Adam want larger ones; the paper tries 0.25 to 10.

    Args:
        optimizer: any `torch.optim.Optimizer`; its learning rate is `lr_max`.
        total_steps: steps of the budget; `lr_min` stays in force afterwards.
        phi: shape, at least 0.
        lr_min: rate at the end, at most that of the start.
        warmup: steps of linear warm-up at the beginning, fewer than `total_steps`.
        cycles: how often the curve is run through within the budget.
        last_epoch: steps already taken, -1 for none.

    Cost: none. Source: Tang et al. (2025), arXiv 2505.24452.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        phi: float = 2.0,
        lr_min: float = 0.0,
        warmup: int = 0,
        cycles: int = 1,
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = check.integer("total_steps", total_steps, 1)
        self.phi = check.nonnegative("phi", phi)
        self.lr_min = check.nonnegative("lr_min", lr_min)
        self.warmup = check.integer("warmup", warmup, 0, total_steps - 1)
        self.cycles = check.integer("cycles", cycles, 1, total_steps - warmup)
        if isinstance(optimizer, Optimizer):
            for group in optimizer.param_groups:
                start = group.get("initial_lr", group["lr"])
                if lr_min > start:
                    raise InputError(f"lr_min must be at most the optimizer's learning rate {start}, got {lr_min}")
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        """Height on the curve between `lr_min` (0) and `lr_max` (1), after the warm-up."""
        budget, taken = self.total_steps - self.warmup, step - self.warmup
        if taken >= budget:
            return 0.0
        height = 1 + math.cos(math.pi * (taken * self.cycles % budget) / budget)
        return 2 * height / (2 * self.phi + (2 - self.phi) * height)

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each group for the coming step."""
        step = self.last_epoch
        if step < self.warmup:
            return [base * (step + 1) / self.warmup for base in self.base_lrs]
        return [self.lr_min + (base - self.lr_min) * self.factor(step) for base in self.base_lrs]
