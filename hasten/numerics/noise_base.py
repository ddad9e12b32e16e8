"""What every noise schedule is: signal and noise levels as functions of time.

The noisy state is `x_t = alpha(t) x_0 + sigma(t) eps`. Time grows with the noise, from `t_min` (clean) to `T` (noise);
`lam = log(alpha/sigma)` grows towards clean data and `rho = sigma/alpha`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hasten.core import check
from hasten.core.errors import InputError

Time = TypeVar("Time", float, Tensor)


def elementwise(function: Callable[[Any, Tensor], Tensor]) -> Callable[[Any, Time], Time]:
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

    @elementwise
    def alpha(self, t: Tensor) -> Tensor:
        """Signal level."""
        return self.log_alpha(t).exp()

    @elementwise
    def dalpha(self, t: Tensor) -> Tensor:
        """Derivative of the signal level by t."""
        return self.alpha(t) * self.dlog_alpha(t)

    @elementwise
    def lam(self, t: Tensor) -> Tensor:
        """Half the log signal-to-noise ratio, `log(alpha/sigma)`; infinite where sigma is 0."""
        return self.log_alpha(t) - self.sigma(t).log()

    @elementwise
    def rho(self, t: Tensor) -> Tensor:
        """Noise-to-signal ratio `sigma/alpha`."""
        return self.sigma(t) * (-self.log_alpha(t)).exp()

    @elementwise
    def beta(self, t: Tensor) -> Tensor:
        """Rate of the forward process, `-2 d log alpha/dt`."""
        return -2.0 * self.dlog_alpha(t)

    @elementwise
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


class VariancePreserving(Schedule):
    """`alpha^2 + sigma^2 = 1`: everything follows from `log_alpha`, its derivative and its inverse."""

    @abstractmethod
    def t_of_log_alpha(self, value: Time) -> Time:
        """Inverse of `log_alpha`."""

    @elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """Noise level."""
        return (-torch.expm1(2.0 * self.log_alpha(t))).sqrt()

    @elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """Derivative of the noise level by t."""
        return -(2.0 * self.log_alpha(t)).exp() * self.dlog_alpha(t) / self.sigma(t)

    @elementwise
    def t_of_lam(self, lam: Tensor) -> Tensor:
        """The time at which `lam(t)` has this value."""
        return self.t_of_log_alpha(-0.5 * softplus(-2.0 * lam, threshold=700.0))
