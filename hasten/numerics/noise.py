"""Noise schedules: how much signal and how much noise a noisy state holds at time t.

The noisy state is `x_t = alpha(t) x_0 + sigma(t) eps`. Time grows with the noise, from `t_min` (clean) to `T` (noise);
`lam = log(alpha/sigma)` grows towards clean data and `rho = sigma/alpha`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.numerics.noise_base import Schedule, VariancePreserving, elementwise
from hasten.numerics.noise_discrete import DiscreteVP

__all__ = ["EDM", "VE", "DiscreteVP", "FlowMatching", "Schedule", "VPCosine", "VPLinear"]


@dataclass(frozen=True)
class VPLinear(VariancePreserving):
    """Variance preserving, with `beta(t) = beta0 + t (beta1 - beta0)` on [0, 1].

    Source: Song et al. (2020), arXiv 2011.13456.
    """

    beta0: float = 0.1
    beta1: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive("beta0", self.beta0)
        check.real("beta1", self.beta1, self.beta0, open_low=True)

    @elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """`-t^2 (beta1 - beta0)/4 - t beta0/2`."""
        return -0.25 * t * t * (self.beta1 - self.beta0) - 0.5 * t * self.beta0

    @elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """`-beta(t)/2`."""
        return -0.5 * (self.beta0 + t * (self.beta1 - self.beta0))

    @elementwise
    def t_of_log_alpha(self, value: Tensor) -> Tensor:
        """Root of a quadratic, in the form that does not cancel."""
        slope = self.beta1 - self.beta0
        d = -4.0 * slope * value
        return d / (((self.beta0**2 + d).sqrt() + self.beta0) * slope)


@dataclass(frozen=True)
class VPCosine(VariancePreserving):
    """Variance preserving, with `alpha(t)` proportional to `cos((t + s)/(1 + s) pi/2)`.

    alpha vanishes at t = 1, so T stays below it. Source: Nichol & Dhariwal (2021), arXiv 2102.09672.
    """

    s: float = 0.008
    T: float = field(default=0.9946, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive("s", self.s)
        check.real("T", self.T, 0.0, 1.0, open_low=True, open_high=True)

    def _angle(self, t: Any) -> Any:
        return (t + self.s) / (1.0 + self.s) * (math.pi / 2.0)

    @elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """`log cos(angle(t)) - log cos(angle(0))`, in the form that is exactly 0 at t = 0."""
        turn = t / (1.0 + self.s) * (math.pi / 2.0)
        return torch.log1p(-2.0 * (0.5 * turn).sin().square() - math.tan(self._angle(0.0)) * turn.sin())

    @elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """`-tan(angle(t)) d angle/dt`."""
        return -self._angle(t).tan() * (math.pi / 2.0) / (1.0 + self.s)

    @elementwise
    def t_of_log_alpha(self, value: Tensor) -> Tensor:
        """Arc cosine, computed from both sides of the triangle so that small angles keep their digits."""
        log_cos = value + 0.5 * math.log1p(-(math.sin(self._angle(0.0)) ** 2))
        angle = torch.atan2((-torch.expm1(2.0 * log_cos)).sqrt(), log_cos.exp())
        return angle * (2.0 / math.pi) * (1.0 + self.s) - self.s


class _Unscaled(Schedule):
    """`alpha = 1`: noise is added, the signal is not scaled."""

    @elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)

    @elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)


@dataclass(frozen=True)
class VE(_Unscaled):
    """Variance exploding: `alpha = 1`, `sigma(t) = sigma_min (sigma_max/sigma_min)^t` on [0, 1].

    Source: Song et al. (2020), arXiv 2011.13456.
    """

    sigma_min: float = 0.01
    sigma_max: float = 50.0
    t_min: float = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive("sigma_min", self.sigma_min)
        check.real("sigma_max", self.sigma_max, self.sigma_min, open_low=True)

    @property
    def _log_ratio(self) -> float:
        return math.log(self.sigma_max / self.sigma_min)

    @elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """Geometric in t."""
        return self.sigma_min * (t * self._log_ratio).exp()

    @elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """`sigma log(sigma_max/sigma_min)`."""
        return self.sigma(t) * self._log_ratio

    @elementwise
    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Inverse of `-log sigma(t)`."""
        return (-lam - math.log(self.sigma_min)) / self._log_ratio


@dataclass(frozen=True)
class EDM(_Unscaled):
    """`alpha = 1`, `sigma(t) = t`: time is the noise level itself. Its usual grid is `karras`.

    Source: Karras et al. (2022), arXiv 2206.00364.
    """

    T: float = field(default=80.0, kw_only=True)
    t_min: float = field(default=0.002, kw_only=True)

    @elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t.clone()

    @elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    @elementwise
    def t_of_lam(self, lam: Tensor) -> Tensor:
        """`exp(-lam)`."""
        return (-lam).exp()


@dataclass(frozen=True)
class FlowMatching(Schedule):
    """Straight paths: `alpha = 1 - t`, `sigma = t`, velocity `eps - x_0`.

    A model whose time runs from noise (0) to data (1) is wrapped: `lambda x, t: -model(x, 1 - t)`.

    Args:
        shift: bends the uniform grid, `t = shift u/(1 + (shift - 1) u)`; above 1 it spends more steps on noise.

    Source: Lipman et al. (2022), arXiv 2210.02747; the shift: Esser et al. (2024), arXiv 2403.03206.
    """

    shift: float = 1.0
    T: float = field(default=0.999, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive("shift", self.shift)
        check.real("T", self.T, 0.0, 1.0, open_low=True)

    @elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """`log(1 - t)`."""
        return torch.log1p(-t)

    @elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """`-1/(1 - t)`."""
        return -1.0 / (1.0 - t)

    @elementwise
    def dalpha(self, t: Tensor) -> Tensor:
        """Minus one; finite at t = 1 too."""
        return -torch.ones_like(t)

    @elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t.clone()

    @elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    @elementwise
    def t_of_lam(self, lam: Tensor) -> Tensor:
        """`1/(1 + exp(lam))`."""
        return torch.sigmoid(-lam)

    def shifted(self, u: Tensor) -> Tensor:
        return self.shift * u / (1.0 + (self.shift - 1.0) * u)

    def unshifted(self, t: Tensor) -> Tensor:
        return t / (self.shift - (self.shift - 1.0) * t)
