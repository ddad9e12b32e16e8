"""What the learning-rate schedules share."""

from __future__ import annotations

from torch import Tensor
from torch.optim.lr_scheduler import LRScheduler


class Schedule(LRScheduler):
    """Base: the learning rate at a step is that of the start times `factor(step)`; `step` counts from 0."""

    def factor(self, step: int) -> float:
        """What the learning rate is multiplied with."""
        raise NotImplementedError

    def get_lr(self) -> list[float | Tensor]:
        """Learning rate of each group for the coming step."""
        return [base * self.factor(self.last_epoch) for base in self.base_lrs]
