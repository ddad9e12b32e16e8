"""The Ornstein-Uhlenbeck process as a noise schedule: the forward process of most analyses."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.numerics.noise_base import VariancePreserving, elementwise


@dataclass(frozen=True)
class OrnsteinUhlenbeck(VariancePreserving):
    """`dX = -X dt + sqrt(2) dW`: variance preserving with `alpha = exp(-t)`, for any T."""

    T: float = field(default=6.0, kw_only=True)

    @elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """`-t`."""
        return -t

    @elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """Minus one."""
        return -torch.ones_like(t)

    @elementwise
    def t_of_log_alpha(self, value: Tensor) -> Tensor:
        """`-log alpha`."""
        return -value
