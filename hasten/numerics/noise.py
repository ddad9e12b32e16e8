"""Noise schedules: how much signal and how much noise a noisy state holds at time t.

The noisy state is `x_t = alpha(t) x_0 + sigma(t) eps`. Time grows with the noise, from `t_min` (clean) to `T` (noise);
`lam = log(alpha/sigma)` grows towards clean data and `rho = sigma/alpha`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hasten.core import check
from hasten.core.errors import InputError

Time = TypeVar("Time", float, Tensor)


def _elementwise(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Time], Time]:
    """Let a formula on float64 tensors take floats and tensors of any type, and answer in kind."""

    @wraps(function)
    def evaluate(self: Any, t: Time) -> Time:
        if not isinstance(t, Tensor):
            return function(self, torch.tensor(t, dtype=torch.float64)).item()  # type: ignore[return-value]
        value = function(self, t.double())
        return value.to(t.dtype) if t.is_floating_point() else value

    return evaluate


@dataclass(frozen=True)
class Schedule(ABC):
    """Signal and noise level of a diffusion or flow, as functions of time.

    All methods take a float or a tensor of times and return the same; they compute in float64. Schedules are values:
    equal parameters make equal schedules, so that coefficients can be cached by schedule.

    Subclasses give `log_alpha`, `sigma`, their derivatives and `t_of_lam`.
    """

    T: float = field(default=1.0, kw_only=True)
    t_min: float = field(default=1e-3, kw_only=True)

    def __post_init__(self) -> None:
        check.nonnegative("t_min", self.t_min)
        check.positive("T", self.T)
        if self.t_min >= self.T:
            raise InputError(f"t_min must be less than T, got t_min={self.t_min} and T={self.T}")

    @abstractmethod
    def log_alpha(self, t: Time) -> Time:
        """Logarithm of the signal level."""

    @abstractmethod
    def sigma(self, t: Time) -> Time:
        """Noise level."""

    @abstractmethod
    def dlog_alpha(self, t: Time) -> Time:
        """Derivative of `log_alpha` by t: the linear drift `f(t)` of the forward process."""

    @abstractmethod
    def dsigma(self, t: Time) -> Time:
        """Derivative of the noise level by t."""

    @abstractmethod
    def t_of_lam(self, lam: Time) -> Time:
        """The time at which `lam(t)` has this value."""

    @_elementwise
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level."""
        return self.log_alpha(t).exp()

    @_elementwise
    def dalpha(self, t: Tensor) -> Tensor:
        """Derivative of the signal level by t."""
        return self.alpha(t) * self.dlog_alpha(t)

    @_elementwise
    def lam(self, t: Tensor) -> Tensor:
        """Half the log signal-to-noise ratio, `log(alpha/sigma)`; infinite where sigma is 0."""
        return self.log_alpha(t) - self.sigma(t).log()

    @_elementwise
    def rho(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio `sigma/alpha`."""
        return self.sigma(t) * (-self.log_alpha(t)).exp()

    @_elementwise
    def beta(self, t: Tensor) -> Tensor:
        """Rate of the forward process, `-2 d log alpha/dt`."""
        return -2.0 * self.dlog_alpha(t)

    @_elementwise
    def diffusion2(self, t: Tensor) -> Tensor:
        """Squared diffusion coefficient `g^2 = d sigma^2/dt - 2 (d log alpha/dt) sigma^2` of the forward process."""
        sigma = self.sigma(t)
        return 2.0 * sigma * (self.dsigma(t) - self.dlog_alpha(t) * sigma)

    def t_of_rho(self, rho: Time) -> Time:
        """The time at which `rho(t)` has this (positive) value."""
        lam: Any = -rho.log() if isinstance(rho, Tensor) else -math.log(rho)
        return self.t_of_lam(lam)

    def shifted(self, u: Tensor) -> Tensor:
        """The time at position u of the schedule's own uniform grid; `unshifted` is the inverse."""
        return u

    def unshifted(self, t: Tensor) -> Tensor:
        """The position u of time t on the schedule's own uniform grid."""
        return t

    @property
    def noise_scale(self) -> float:
        """Standard deviation of the start noise, `sigma(T)`."""
        return self.sigma(self.T)


class _VariancePreserving(Schedule):
    """`alpha^2 + sigma^2 = 1`: everything follows from `log_alpha`, its derivative and its inverse."""

    @abstractmethod
    def t_of_log_alpha(self, value: Time) -> Time:
        """Inverse of `log_alpha`."""

    @_elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level."""
        return (-torch.expm1(2.0 * self.log_alpha(t))).sqrt()

    @_elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """Derivative of the noise level by t."""
        return -(2.0 * self.log_alpha(t)).exp() * self.dlog_alpha(t) / self.sigma(t)

    @_elementwise
    def t_of_lam(self, lam: Tensor) -> Tensor:
        """The time at which `lam(t)` has this value."""
        return self.t_of_log_alpha(-0.5 * softplus(-2.0 * lam, threshold=700.0))


@dataclass(frozen=True)
class VPLinear(_VariancePreserving):
    """Variance preserving, with `beta(t) = beta0 + t (beta1 - beta0)` on [0, 1].

    Source: Song et al. (2020), arXiv 2011.13456.
    """

    beta0: float = 0.1
    beta1: float = 20.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check.positive("beta0", self.beta0)
        check.real("beta1", self.beta1, self.beta0, open_low=True)

    @_elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """`-t^2 (beta1 - beta0)/4 - t beta0/2`."""
        return -0.25 * t * t * (self.beta1 - self.beta0) - 0.5 * t * self.beta0

    @_elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """`-beta(t)/2`."""
        return -0.5 * (self.beta0 + t * (self.beta1 - self.beta0))

    @_elementwise
    def t_of_log_alpha(self, value: Tensor) -> Tensor:
        """Root of a quadratic, in the form that does not cancel."""
        slope = self.beta1 - self.beta0
        d = -4.0 * slope * value
        return d / (((self.beta0**2 + d).sqrt() + self.beta0) * slope)


@dataclass(frozen=True)
class VPCosine(_VariancePreserving):
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

    @_elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """`log cos(angle(t)) - log cos(angle(0))`."""
        return self._angle(t).cos().log() - math.log(math.cos(self._angle(0.0)))

    @_elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """`-tan(angle(t)) d angle/dt`."""
        return -self._angle(t).tan() * (math.pi / 2.0) / (1.0 + self.s)

    @_elementwise
    def t_of_log_alpha(self, value: Tensor) -> Tensor:
        """Arc cosine, computed from both sides of the triangle so that small angles keep their digits."""
        log_cos = value + math.log(math.cos(self._angle(0.0)))
        angle = torch.atan2((-torch.expm1(2.0 * log_cos)).sqrt(), log_cos.exp())
        return angle * (2.0 / math.pi) * (1.0 + self.s) - self.s


@dataclass(frozen=True)
class DiscreteVP(_VariancePreserving):
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

    def __hash__(self) -> int:
        return hash((len(self.betas), self.betas[0], self.betas[-1], self.T, self.t_min))

    def _segment(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        knots = self._knots.to(t.device)
        left = t.floor().clamp(0, len(self.betas) - 2).long()
        return left, knots[left], knots[left + 1]

    @_elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """Linear between the levels."""
        left, low, high = self._segment(t)
        return torch.lerp(low, high, t - left)

    @_elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """Slope of the segment that t lies in."""
        _, low, high = self._segment(t)
        return high - low

    @_elementwise
    def t_of_log_alpha(self, value: Tensor) -> Tensor:
        """Inverse on the segment that holds `value`."""
        knots = -self._knots.to(value.device)
        left = (torch.searchsorted(knots, -value.contiguous()) - 1).clamp(0, len(self.betas) - 2)
        return left + (-value - knots[left]) / (knots[left + 1] - knots[left])


class _Unscaled(Schedule):
    """`alpha = 1`: noise is added, the signal is not scaled."""

    @_elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(t)

    @_elementwise
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

    @_elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """Geometric in t."""
        return self.sigma_min * (t * self._log_ratio).exp()

    @_elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """`sigma log(sigma_max/sigma_min)`."""
        return self.sigma(t) * self._log_ratio

    @_elementwise
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

    @_elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t.clone()

    @_elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    @_elementwise
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

    @_elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """`log(1 - t)`."""
        return torch.log1p(-t)

    @_elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """`-1/(1 - t)`."""
        return -1.0 / (1.0 - t)

    @_elementwise
    def dalpha(self, t: Tensor) -> Tensor:
        """Minus one; finite at t = 1 too."""
        return -torch.ones_like(t)

    @_elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """The time itself."""
        return t.clone()

    @_elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """One."""
        return torch.ones_like(t)

    @_elementwise
    def t_of_lam(self, lam: Tensor) -> Tensor:
        """`1/(1 + exp(lam))`."""
        return torch.sigmoid(-lam)

    def shifted(self, u: Tensor) -> Tensor:
        return self.shift * u / (1.0 + (self.shift - 1.0) * u)

    def unshifted(self, t: Tensor) -> Tensor:
        return t / (self.shift - (self.shift - 1.0) * t)
