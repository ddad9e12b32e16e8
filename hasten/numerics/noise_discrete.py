"""Noise schedules of networks that were trained on a finite number of noise levels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.numerics.noise_base import VariancePreserving, elementwise


@dataclass(frozen=True)
class DiscreteVP(VariancePreserving):
    """The schedule of a network trained on N discrete levels; t is the level's index, from 0 to N - 1.

    Between two levels, `log_alpha` is linear in t.

    Args:
        betas: variances added per level, in (0, 1), the cleanest level first.
    """

    betas: tuple[float, ...]
    T: float = field(default=0.0, kw_only=True)
    t_min: float = field(default=0.0, kw_only=True)
    _knots: Tensor = field(init=False, repr=False, compare=False)

    def __init__(self, betas: Sequence[float] | Tensor, *, T: float | None = None, t_min: float = 0.0) -> None:
        values = torch.as_tensor(betas, dtype=torch.float64).flatten()
        if len(values) < 2 or not bool(((values > 0) & (values < 1)).all()):
            raise InputError("betas must be at least two numbers inside (0, 1), cleanest level first")
        set_field = object.__setattr__
        set_field(self, "betas", tuple(values.tolist()))
        set_field(self, "T", float(len(values) - 1 if T is None else T))
        set_field(self, "t_min", float(t_min))
        set_field(self, "_knots", 0.5 * torch.log1p(-values).cumsum(0))
        super().__post_init__()
        check.real("T", self.T, 0.0, len(values) - 1)

    @classmethod
    def linear(cls, levels: int = 1000, start: float = 1e-4, end: float = 0.02) -> DiscreteVP:
        """betas uniform from `start` to `end` (DDPM)."""
        return cls(torch.linspace(start, end, levels, dtype=torch.float64))

    @classmethod
    def scaled_linear(cls, levels: int = 1000, start: float = 0.00085, end: float = 0.012) -> DiscreteVP:
        """sqrt(beta) uniform (latent diffusion)."""
        return cls(torch.linspace(start**0.5, end**0.5, levels, dtype=torch.float64) ** 2)

    @classmethod
    def cosine(cls, levels: int = 1000, s: float = 0.008, most: float = 0.999) -> DiscreteVP:
        """alpha^2 proportional to `cos^2((i/levels + s)/(1 + s) pi/2)`, betas at most `most`.

        Slower at both ends than linear betas, for small images. Source: Nichol & Dhariwal (2021), arXiv 2102.09672.
        """
        angles = (torch.arange(check.integer("levels", levels, 2) + 1, dtype=torch.float64) / levels + s) / (1.0 + s)
        signal = (angles * (math.pi / 2.0)).cos().square()
        return cls((1.0 - signal[1:] / signal[:-1]).clamp(max=most))

    @classmethod
    def sigmoid(cls, levels: int = 1000, start: float = 1e-4, end: float = 0.02) -> DiscreteVP:
        """betas on a sigmoid from -6 to 6 that rises from about `start` to about `end` (GeoDiff)."""
        rise = torch.linspace(-6.0, 6.0, check.integer("levels", levels, 2), dtype=torch.float64).sigmoid()
        return cls(start + (end - start) * rise)

    def __hash__(self) -> int:
        return hash((len(self.betas), self.betas[0], self.betas[-1], self.T, self.t_min))

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots = self._knots.to(t.device)
        left = t.floor().clamp(0, len(self.betas) - 2).long()
        return left, knots[left], knots[left + 1]

    @elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """Linear between the levels."""
        left, low, high = self._segment(t)
        return torch.lerp(low, high, t - left)

    @elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """Slope of the segment that t lies in."""
        _, low, high = self._segment(t)
        return high - low

    @elementwise
    def t_of_log_alpha(self, value: Tensor) -> Tensor:
        """Inverse on the segment that holds `value`."""
        knots = -self._knots.to(value.device)
        left = (torch.searchsorted(knots, -value.contiguous()) - 1).clamp(0, len(self.betas) - 2)
        return left + (-value - knots[left]) / (knots[left + 1] - knots[left])
