"""The noise schedule of one frequency on the shortest path from a spectrum to white noise."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core import check
from hasten.numerics.noise_base import VariancePreserving, elementwise


@dataclass(frozen=True)
class FrequencySchedule(VariancePreserving):
    """Variance preserving, with `alpha^2 = (1 - S^{1-t})/(1 - S)` for a frequency of power S in the data.

    The power at time t is then `S^{1-t}`. Source: Das et al. (2023), arXiv 2306.00501.
    """

    power: float = 1.0
    T: float = field(default=0.999, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive("power", self.power)
        check.real("T", self.T, 0.0, 1.0, open_low=True, open_high=True)

    @property
    def _log(self) -> float:
        """`log S`, kept away from 0, where `alpha^2` is `1 - t`."""
        value = math.log(self.power)
        return value if abs(value) > 1e-9 else 1e-9

    @elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """Half the logarithm of the share of the data's power that is left."""
        return 0.5 * (torch.expm1((1.0 - t) * self._log) / math.expm1(self._log)).log()

    @elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """`-log S S^{1-t}/(2 (S^{1-t} - 1))`."""
        return 0.5 * self._log / torch.expm1((t - 1.0) * self._log)

    @elementwise
    def t_of_log_alpha(self, value: Tensor) -> Tensor:
        """`1 - log(1 + alpha^2 (S - 1))/log S`."""
        return 1.0 - torch.log1p((2.0 * value).exp() * math.expm1(self._log)) / self._log
