"""Gaussian mixtures as data: their noisy densities, scores and denoisers are known in closed form."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import Schedule

Level = float | Tensor


class GaussianMixture:
    """A mixture of K Gaussians in d dimensions, as the law of clean data.

    A noisy state `x = alpha x_0 + sigma eps` then has a mixture of `N(alpha mu_k, alpha^2 Sigma_k + sigma^2 I)`, so its
    density, score and posterior mean are exact at any `(alpha, sigma)`. These are floats or tensors of shape (batch,).

    Args:
        means: shape (K, d).
        variances: per-component variances: one number, shape (K,) or (K, d). Excludes `covs`.
        covs: full covariances, shape (K, d, d).
        weights: shape (K,), positive; normalised to sum 1. Uniform if not given.
    """

    def __init__(
        self,
        means: Any,
        variances: Any = None,
        weights: Any = None,
        *,
        covs: Any = None,
    ) -> None:
        self.means = torch.as_tensor(means, dtype=torch.float64)
        if self.means.ndim != 2:
            raise InputError(f"means must have shape (components, dim), got {tuple(self.means.shape)}")
        count, dim = self.means.shape
        if (variances is None) == (covs is None):
            raise InputError("give either variances or covs")
        self._axes: Tensor | None = None
        if covs is not None:
            covs = torch.as_tensor(covs, dtype=torch.float64)
            if covs.shape != (count, dim, dim) or not torch.allclose(covs, covs.mT):
                raise InputError(f"covs must be symmetric, of shape {(count, dim, dim)}; got {tuple(covs.shape)}")
            spectrum, self._axes = torch.linalg.eigh(covs)
        else:
            spectrum = torch.as_tensor(variances, dtype=torch.float64)
            spectrum = (spectrum[:, None] if spectrum.ndim == 1 else spectrum).expand(count, dim)
        if bool((spectrum < 0).any()) or not bool(spectrum.isfinite().all()):
            raise InputError("variances must be finite and not negative (covs positive semi-definite)")
        self.variances = spectrum
        share = torch.ones(count) if weights is None else torch.as_tensor(weights)
        if share.shape != (count,) or not bool((share > 0).all()):
            raise InputError(f"weights must be {count} positive numbers, got {weights!r}")
        self.weights = share.double() / share.double().sum()
        self._cast: dict[tuple[torch.dtype, torch.device], tuple[Any, ...]] = {}

    @property
    def dim(self) -> int:
        """Dimension of the data."""
        return self.means.shape[1]

    def x0(self, x: Tensor, alpha: Level, sigma: Level, labels: Tensor | None = None) -> Tensor:
        """Posterior mean `E[x_0 | x]`. Shapes: x (batch, d); result like x.

        Args:
            labels: component of each sample, shape (batch,), if it is known; -1 where it is not.
        """
        share, offset, total, alpha, _ = self._parts(x, alpha, sigma, labels)
        means, variances, axes = self._constants(x)[:3]
        pull = alpha * variances / total * offset
        if axes is not None:
            pull = (axes @ pull[..., None])[..., 0]
        return (share[..., None] * (means + pull)).sum(1)

    def eps(self, x: Tensor, alpha: Level, sigma: Level, labels: Tensor | None = None) -> Tensor:
        """Expected noise `E[eps | x]`, `-sigma score`; no cancellation at small sigma."""
        return -_column(sigma, x) * self.score(x, alpha, sigma, labels)

    def score(self, x: Tensor, alpha: Level, sigma: Level, labels: Tensor | None = None) -> Tensor:
        """Gradient of `log_prob`."""
        share, offset, total, _, _ = self._parts(x, alpha, sigma, labels)
        return (share[..., None] * self._slopes(x, offset, total)).sum(1)

    def divergence(self, x: Tensor, alpha: Level, sigma: Level, labels: Tensor | None = None) -> Tensor:
        """Divergence of the score, the Laplacian of `log_prob`; shape (batch,)."""
        share, offset, total, _, _ = self._parts(x, alpha, sigma, labels)
        slopes = self._slopes(x, offset, total)
        curvature = slopes.square().sum(-1) - (1.0 / total).sum(-1)
        return (share * curvature).sum(1) - (share[..., None] * slopes).sum(1).square().sum(-1)

    def log_prob(self, x: Tensor, alpha: Level = 1.0, sigma: Level = 0.0, labels: Tensor | None = None) -> Tensor:
        """Log density of noisy states at x; shape (batch,). The data's own at the default levels."""
        return self._parts(x, alpha, sigma, labels)[4].logsumexp(1)

    def sample(self, count: int, generator: torch.Generator | None = None, *, labels: Tensor | None = None) -> Tensor:
        """Draws of clean data, shape (count, d), float64; from these components, if `labels` of shape (count,) says."""
        check.integer("count", count, 1)
        if labels is not None and labels.shape != (count,):
            raise InputError(f"labels must have shape ({count},), got {tuple(labels.shape)}")
        picked = labels
        if picked is None:
            picked = torch.multinomial(self.weights, count, replacement=True, generator=generator)
        spread = torch.randn(count, self.dim, dtype=torch.float64, generator=generator) * self.variances[picked].sqrt()
        if self._axes is not None:
            spread = (self._axes[picked] @ spread[..., None])[..., 0]
        return self.means[picked] + spread

    def denoiser(self, schedule: Schedule, prediction: str = "epsilon") -> Denoiser:
        """The exact network under a schedule, as one that predicts `epsilon`, `x0` or `score`.

        It takes component labels as its condition: `denoiser.given(labels)`.
        """
        check.one_of("prediction", prediction, ("epsilon", "x0", "score"))
        quantity = {"epsilon": self.eps, "x0": self.x0, "score": self.score}[prediction]

        def network(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
            same = t.numel() == 1 or t.stride(0) == 0
            level = t[:1] if same else t
            return quantity(x, schedule.alpha(level), schedule.sigma(level), cond)

        return Denoiser(network, schedule, prediction, log_prob=self.log_prob)

    def _constants(self, x: Tensor) -> tuple[Any, ...]:
        """Means, variances, axes (or None) and log weights in the type and on the device of x."""
        key = (x.dtype, x.device)
        if key not in self._cast:
            axes = None if self._axes is None else self._axes.to(x)
            self._cast[key] = (self.means.to(x), self.variances.to(x), axes, self.weights.log().to(x))
        return self._cast[key]

    def _parts(self, x: Tensor, alpha: Level, sigma: Level, labels: Tensor | None) -> tuple[Tensor, ...]:
        """Posterior weights, offsets from the components in their own axes, total variances, alpha, log joint."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise InputError(f"x must have shape (batch, {self.dim}), got {tuple(x.shape)}")
        means, variances, axes, log_weights = self._constants(x)
        alpha, sigma = _column(alpha, x)[..., None], _column(sigma, x)[..., None]
        total = alpha.square() * variances + sigma.square()
        offset = x[:, None] - alpha * means
        if axes is not None:
            offset = (axes.mT @ offset[..., None])[..., 0]
        log_joint = log_weights - 0.5 * (offset.square() / total + total.log() + math.log(2 * math.pi)).sum(-1)
        if labels is not None:
            other = torch.arange(len(means), device=x.device) != labels[:, None]
            known = other & (labels[:, None] >= 0)
            log_joint = (log_joint - log_weights * (labels[:, None] >= 0)).masked_fill(known, -math.inf)
        return log_joint.softmax(1), offset, total, alpha, log_joint

    def _slopes(self, x: Tensor, offset: Tensor, total: Tensor) -> Tensor:
        """Score of each component."""
        axes = self._constants(x)[2]
        slopes = -offset / total
        return slopes if axes is None else (axes @ slopes[..., None])[..., 0]


class Gaussian(GaussianMixture):
    """Data from `N(mean, diag(spectrum))`: every linear solver is linear and diagonal on it.

    Args:
        spectrum: variances, shape (d,).
        mean: shape (d,); zero if not given.
    """

    def __init__(self, spectrum: Any, mean: Any = None) -> None:
        spectrum = torch.as_tensor(spectrum, dtype=torch.float64)
        centre = torch.zeros_like(spectrum) if mean is None else torch.as_tensor(mean, dtype=torch.float64)
        super().__init__(centre[None], spectrum[None])

    def flow(self, noise: Tensor, schedule: Schedule, t: float | None = None) -> Tensor:
        """The probability-flow ODE's solution at t (t_min if not given) from `noise` at T, in closed form."""
        end = schedule.t_min if t is None else t
        spread = [
            (schedule.alpha(s) ** 2 * self.variances[0] + schedule.sigma(s) ** 2).sqrt() for s in (schedule.T, end)
        ]
        standard = (noise.double() - schedule.alpha(schedule.T) * self.means[0]) / spread[0]
        return (schedule.alpha(end) * self.means[0] + spread[1] * standard).to(noise)


def circle(components: int = 5, dim: int = 2, radius: float = 2.0, variance: float = 0.15) -> GaussianMixture:
    """The standard mixture: components on a circle (dim 2) or in fixed random directions, weights falling linearly.

    With the defaults: five components of variance 0.15 on a circle of radius 2, weights .30, .25, .20, .15, .10. In
    more dimensions the radius grows as sqrt(dim/2), so that the scale per coordinate stays.
    """
    check.integer("components", components, 1)
    check.integer("dim", dim, 1)
    if dim == 2:
        angle = torch.arange(components, dtype=torch.float64) * (2 * math.pi / components)
        directions = torch.stack((angle.cos(), angle.sin()), dim=1)
    else:
        generator = torch.Generator().manual_seed(0)
        directions = torch.randn(components, dim, dtype=torch.float64, generator=generator)
        directions /= directions.norm(dim=1, keepdim=True)
    weights = torch.arange(components + 1, 1, -1, dtype=torch.float64)
    return GaussianMixture(radius * math.sqrt(dim / 2) * directions, variance, weights)


def classes(components: int = 6, dim: int = 8, variance: float = 0.3, seed: int = 0) -> GaussianMixture:
    """The standard class-conditional mixture: equal weights, means drawn from N(0, I); a label is a component."""
    generator = torch.Generator().manual_seed(seed)
    return GaussianMixture(torch.randn(components, dim, dtype=torch.float64, generator=generator), variance)


def _column(level: Level, x: Tensor) -> Tensor:
    level = level if isinstance(level, Tensor) else torch.tensor(level, dtype=torch.float64)
    return level.to(x).reshape(-1, 1)
