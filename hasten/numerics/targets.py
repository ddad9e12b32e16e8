"""Target densities made of diffusion models, as paths of weighted particles that follow guided drifts.

With the forward process `dx = f x dt + g dw`, reverse time tau and a path of densities `q`, particles that move by
`dx = v dtau + g dw` and gather `log w += potential dtau` have weighted law q if
`d log q/dtau = -div v - v.grad log q + (g^2/2)(div grad log q + |grad log q|^2) + potential`, up to a constant.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.numerics.divergence import divergence

Divergence = Callable[[Tensor, float], Tensor]
Count = Callable[[int], Any]


class Field(NamedTuple):
    """A vector field that may be added to the drift; `potential` is what it is the gradient of, if that is known."""

    value: Tensor
    divergence: Tensor
    potential: Tensor | None = None


class Terms(NamedTuple):
    """What moves and weighs particles at a time: guided drift, potential, gradient of log q, fields to control with."""

    drift: Tensor
    potential: Tensor
    slope: Tensor
    basis: tuple[Field, ...]


class Target(Protocol):
    """A density as the end of a path of densities that begins with noise."""

    schedule: Any
    shape: tuple[int, ...]

    def terms(self, x: Tensor, t: float, generator: torch.Generator, *, slopes: bool) -> Terms:
        """Drift, potential and fields at x and t; the scores are among the fields only with `slopes`."""
        ...

    def start_scale(self) -> float:
        """Standard deviation of the particles at T."""
        ...

    def counted(self, count: Count, batch: int) -> Target:
        """The same target, reporting its evaluations."""
        ...


class _Scored:
    """Scores of networks, and the divergences of these."""

    def __init__(
        self, denoisers: Sequence[Denoises], shape: Sequence[int], divergences: Sequence[Divergence] | None, probes: int
    ) -> None:
        if not denoisers:
            raise InputError("give at least one denoiser")
        self.denoisers = tuple(denoisers)
        self.schedule = self.denoisers[0].schedule
        if any(other.schedule != self.schedule for other in self.denoisers):
            raise InputError("the denoisers of a product must share one schedule")
        self.shape = tuple(check.integer("shape", size, 1) for size in shape)
        if divergences is not None and len(divergences) != len(self.denoisers):
            raise InputError(f"give one divergence per denoiser, got {len(divergences)} for {len(self.denoisers)}")
        self._divergences = divergences
        self.probes = check.integer("probes", probes, 0)
        self._count: Count = lambda evaluations: None

    def counted(self, count: Count, batch: int) -> Any:
        """The same target, reporting its evaluations per particle to `count`."""
        made = copy.copy(self)
        made.denoisers = tuple(denoiser.counted(count, batch) for denoiser in self.denoisers)
        made._count = count
        return made

    def _scores(
        self, x: Tensor, t: float, generator: torch.Generator, *, slopes: bool
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Score of each network and, if wanted, its divergence."""
        sigma = self.schedule.sigma(t)
        scores, divergences = [], []
        for i, denoiser in enumerate(self.denoisers):
            if not slopes or self._divergences is not None:
                scores.append(denoiser.eps(x, t) / -sigma)
                if slopes and self._divergences is not None:
                    divergences.append(self._divergences[i](x, t))
            else:
                score, own = divergence(lambda y, d=denoiser: d.eps(y, t) / -sigma, x, self.probes, generator)
                scores.append(score)
                divergences.append(own)
                self._count(self.probes or x[0].numel())
        return scores, divergences


class Product(_Scored):
    """Product of powers of models' densities, `q ~ prod_k p_k^gamma_k`: experts that must agree, or annealing.

    Guided drift `-f x + g^2 S`, `S = sum_k gamma_k s_k`; potential `(g^2/2)(|S|^2 - sum_k gamma_k |s_k|^2)`.

    Args:
        denoisers: the models, with one schedule.
        gammas: their exponents, of positive sum.
        shape: shape of one sample.
        divergences: divergence of each model's score as a function of (x, t), where it is known.
        probes: otherwise, probes of Hutchinson's estimator; 0 differentiates by every coordinate.
    """

    def __init__(
        self,
        denoisers: Sequence[Denoises],
        gammas: Sequence[float],
        shape: Sequence[int],
        *,
        divergences: Sequence[Divergence] | None = None,
        probes: int = 0,
    ) -> None:
        super().__init__(denoisers, shape, divergences, probes)
        self.gammas = tuple(float(check.real("gamma", gamma)) for gamma in gammas)
        if len(self.gammas) != len(self.denoisers):
            raise InputError(f"give one gamma per denoiser, got {len(self.gammas)} for {len(self.denoisers)}")
        check.positive("the sum of the gammas", sum(self.gammas))

    def start_scale(self) -> float:
        return self.schedule.noise_scale / sum(self.gammas) ** 0.5

    def terms(self, x: Tensor, t: float, generator: torch.Generator, *, slopes: bool) -> Terms:
        f, g2 = self.schedule.dlog_alpha(t), self.schedule.diffusion2(t)
        scores, divergences = self._scores(x, t, generator, slopes=slopes)
        pull = sum((gamma * score for gamma, score in zip(self.gammas, scores)), torch.zeros_like(x))
        own = sum((gamma * dot(score, score) for gamma, score in zip(self.gammas, scores)), x.new_zeros(len(x)))
        drift = -f * x + g2 * pull
        potential = 0.5 * g2 * (dot(pull, pull) - own)
        own_fields = [Field(g2 * score, g2 * slope) for score, slope in zip(scores, divergences)]
        return Terms(drift, potential, pull, (*own_fields, linear(x, g2)))


class Annealed(Product):
    """A model's density to the power gamma: above 1 it concentrates on the likeliest samples.

    Args:
        denoiser: the model.
        gamma: inverse temperature, positive.
        shape: shape of one sample.
        divergence: divergence of the score as a function of (x, t), where it is known.
        probes: see `Product`.
    """

    def __init__(
        self,
        denoiser: Denoises,
        gamma: float,
        shape: Sequence[int],
        *,
        divergence: Divergence | None = None,
        probes: int = 0,
    ) -> None:
        check.positive("gamma", gamma)
        known = None if divergence is None else (divergence,)
        super().__init__((denoiser,), (gamma,), shape, divergences=known, probes=probes)


class Tilted(_Scored):
    """A model's density times the exponential of a reward, `q ~ p exp(reward)`.

    On the way the reward counts with weight alpha(t), which grows from 0 to 1. With `r = alpha reward`, guided drift
    `u + g^2 grad r`, `u = -f x + g^2 s`; potential `dr/dtau + u.grad r + (g^2/2)(lap r + |grad r|^2)`.

    Args:
        denoiser: the model.
        reward: differentiable function of samples (batch, ...) to rewards (batch,).
        shape: shape of one sample.
        divergence: divergence of the score as a function of (x, t), where it is known.
        probes: see `Product`; also for the Laplacian of the reward.
    """

    def __init__(
        self,
        denoiser: Denoises,
        reward: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        *,
        divergence: Divergence | None = None,
        probes: int = 0,
    ) -> None:
        if not callable(reward):
            raise InputError(f"reward must be a function of samples, got {reward!r}")
        super().__init__((denoiser,), shape, None if divergence is None else (divergence,), probes)
        self.reward = reward

    def start_scale(self) -> float:
        return self.schedule.noise_scale

    def terms(self, x: Tensor, t: float, generator: torch.Generator, *, slopes: bool) -> Terms:
        f, g2, weight = self.schedule.dlog_alpha(t), self.schedule.diffusion2(t), self.schedule.alpha(t)
        scores, divergences = self._scores(x, t, generator, slopes=slopes)
        reward = self.reward(x)
        if reward.shape != (len(x),):
            raise InputError(f"reward must return shape ({len(x)},), got {tuple(reward.shape)}")
        gradient, laplacian = divergence(self._gradient, x, self.probes, generator)
        gradient, laplacian, value = weight * gradient, weight * laplacian, weight * reward
        free = -f * x + g2 * scores[0]
        rate = -self.schedule.dalpha(t) * reward
        potential = rate + dot(free, gradient) + 0.5 * g2 * (laplacian + dot(gradient, gradient))
        own_fields = [Field(g2 * score, g2 * slope) for score, slope in zip(scores, divergences)]
        tilt = Field(g2 * gradient, g2 * laplacian, g2 * value)
        return Terms(free + g2 * gradient, potential, scores[0] + gradient, (*own_fields, tilt, linear(x, g2)))

    def _gradient(self, x: Tensor) -> Tensor:
        at = x if x.requires_grad else x.requires_grad_(True)
        (gradient,) = torch.autograd.grad(self.reward(at).sum(), at, create_graph=True, materialize_grads=True)
        return gradient


def linear(x: Tensor, scale: float) -> Field:
    """The field `scale x`."""
    return Field(scale * x, x.new_full((len(x),), scale * x[0].numel()), 0.5 * scale * dot(x, x))


def dot(a: Tensor, b: Tensor) -> Tensor:
    """Inner product of each sample's pair, shape (batch,)."""
    return (a * b).flatten(1).sum(1)
