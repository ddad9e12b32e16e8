"""Kinetic-optimal Gaussian paths: the straightest way from noise to data that a schedule can take."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.core.registry import register
from hasten.numerics.mixture import GaussianMixture
from hasten.numerics.noise_base import Schedule, elementwise

CARD = Card(
    name="kinetic-optimal-path",
    family="diffusion",
    title="On Kinetic Optimal Probability Paths for Generative Models",
    authors="Shaul, Chen, Nickel, Le & Lipman",
    year=2023,
    arxiv="2306.06626",
    paper_id=349,
    summary="Fits the noise schedule to the data so that the velocity field has the least kinetic energy.",
    cost="A table of some 400 numbers, from posterior means of samples; sampling costs what it did.",
    when="For a flow model of data in few dimensions; in many, straight paths (`FlowMatching`) are all but optimal.",
    kinds=("sample",),
    needs=("law",),
    use=(
        "from hasten.numerics.mixture import circle\n"
        "mixture = circle()\n"
        "path = hasten.diffusion.KineticOptimalPath.fit(mixture)\n"
        'samples = hasten.diffusion.sample(mixture.denoiser(path, "x0"), (16, 2), sampler="ddim", steps=20)'
    ),
)

FLOOR = 1e-4


@register(CARD)
@dataclass(frozen=True)
class KineticOptimalPath(Schedule):
    """The Gaussian path of least kinetic energy for one law of data.

    With `alpha = r sin(theta)` and `sigma = scale r cos(theta)`, the energy per dimension of the path's velocity field
    is `int r'^2 + (r theta' gamma(theta))^2 dt`, where `gamma^2` is the mean square, per dimension, of the expected
    `x_0 cos(theta) - eps sin(theta)` given the noisy state (data divided by `scale`). With `phi = int_0^theta gamma`
    that is the energy of a motion in the plane with polar coordinates `(r, phi)`, so the optimum is a straight line at
    constant speed from angle 0 (noise) to `Phi = phi(pi/2)` (data), of energy `2 - 2 cos(Phi)`.

    `gamma = 1` gives straight paths, `alpha = 1 - t` and `sigma = scale t`.

    Args:
        gamma: values of gamma at the midpoints of equal parts of [0, pi/2], in (0, 1].
        scale: root mean square of the data per dimension, which is the standard deviation of the start noise.

    Source: Shaul et al. (2023), arXiv 2306.06626.
    """

    gamma: tuple[float, ...]
    scale: float = 1.0
    T: float = field(default=0.999, kw_only=True)
    _phi: np.ndarray = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.real("T", self.T, 0.0, 1.0, open_low=True)
        check.positive("scale", self.scale)
        values = np.asarray(self.gamma, dtype=float)
        if values.ndim != 1 or len(values) < 2 or not ((values > 0) & (values <= 1 + 1e-9)).all():
            raise InputError("gamma must be at least two numbers in (0, 1], at midpoints of equal parts of [0, pi/2]")
        object.__setattr__(self, "gamma", tuple(values.tolist()))
        object.__setattr__(self, "_phi", np.concatenate(([0.0], values.cumsum())) * (0.5 * math.pi / len(values)))

    @classmethod
    def fit(
        cls, data: GaussianMixture | Any, n_theta: int = 400, samples: int = 8192, seed: int = 0
    ) -> KineticOptimalPath:
        """The optimal path of a law, or of a cloud of points.

        Args:
            data: a mixture, or points of shape (n, d) as equally likely data.
            n_theta: parts of the table.
            samples: noisy states per part, over which posterior means are averaged.
            seed: of their randomness.
        """
        check.integer("n_theta", n_theta, 2)
        law = as_law(data)
        scale = _scale(law)
        angles = (np.arange(n_theta) + 0.5) * (0.5 * math.pi / n_theta)
        clean, noise = _draws(law, samples, seed)
        gamma = [math.sqrt(_turning(law, scale, float(angle), clean, noise)) for angle in angles]
        return cls(tuple(min(max(value, FLOOR), 1.0) for value in gamma), scale)

    @property
    def angle(self) -> float:
        """`Phi`, the angle between noise and data; pi/2 for straight paths."""
        return float(self._phi[-1])

    @property
    def energy(self) -> float:
        """Kinetic energy per dimension of the whole path, in units of `scale^2`."""
        return 2.0 - 2.0 * math.cos(self.angle)

    def _polar(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """r, theta and their derivatives by t."""
        s, cos, sin = 1.0 - t, math.cos(self.angle), math.sin(self.angle)
        x, y = t + s * cos, s * sin
        r = (x * x + y * y).sqrt()
        angle = torch.atan2(y, x).clamp(0.0, self.angle)
        knots, gamma = (
            torch.from_numpy(self._phi).to(t.device),
            torch.tensor(self.gamma, dtype=torch.float64, device=t.device),
        )
        part = (torch.searchsorted(knots, angle.contiguous(), right=True) - 1).clamp(0, len(self.gamma) - 1)
        width = 0.5 * math.pi / len(self.gamma)
        theta = part.double() * width + (angle - knots[part]) / gamma[part]
        return r, theta, (x * (1.0 - cos) - y * sin) / r, -sin / (r * r * gamma[part])

    @elementwise
    def alpha(self, t: Tensor) -> Tensor:
        """`r sin(theta)`."""
        r, theta, _, _ = self._polar(t)
        return torch.where(t >= 1.0, 0.0, r * theta.sin())

    @elementwise
    def log_alpha(self, t: Tensor) -> Tensor:
        """Logarithm of the signal level; minus infinity at t = 1."""
        return self.alpha(t).log()

    @elementwise
    def dalpha(self, t: Tensor) -> Tensor:
        """Derivative of the signal level by t; finite at t = 1 too."""
        r, theta, dr, dtheta = self._polar(t)
        return dr * theta.sin() + r * theta.cos() * dtheta

    @elementwise
    def dlog_alpha(self, t: Tensor) -> Tensor:
        """`alpha'/alpha`."""
        return self.dalpha(t) / self.alpha(t)

    @elementwise
    def sigma(self, t: Tensor) -> Tensor:
        """`scale r cos(theta)`."""
        r, theta, _, _ = self._polar(t)
        return torch.where(t <= 0.0, 0.0, self.scale * r * theta.cos().clamp(min=0.0))

    @elementwise
    def dsigma(self, t: Tensor) -> Tensor:
        """Derivative of the noise level by t."""
        r, theta, dr, dtheta = self._polar(t)
        return self.scale * (dr * theta.cos() - r * theta.sin() * dtheta)

    @elementwise
    def t_of_lam(self, lam: Tensor) -> Tensor:
        """Where the straight line crosses the ray whose angle belongs to this signal-to-noise ratio."""
        theta = torch.atan(self.scale * lam.exp())
        place = theta / (0.5 * math.pi / len(self.gamma))
        part = place.floor().clamp(0, len(self.gamma) - 1).long()
        knots = torch.from_numpy(self._phi).to(lam.device)
        angle = torch.lerp(knots[part], knots[part + 1], place - part)
        rest = (self.angle - angle).sin()
        return rest / (angle.sin() + rest)


def kinetic_energy(schedule: Schedule, target: Any, parts: int = 200, samples: int = 8192, seed: int = 0) -> float:
    """Kinetic energy per dimension of a schedule's velocity field, `int E|u_t(x_t)|^2 dt/(d scale^2)`, by Monte Carlo.

    `scale` is the root mean square of the data per dimension, so that equal shapes have equal energies. Time runs from
    `t_min` to `T` and is rescaled to length one.

    Args:
        target: a mixture, or points of shape (n, d).
        parts: midpoints in time.
        samples: noisy states at each of them.
        seed: of their randomness.
    """
    check.integer("parts", parts, 1)
    law = as_law(target)
    scale, length = _scale(law), schedule.T - schedule.t_min
    clean, noise = _draws(law, samples, seed)
    total = 0.0
    for i in range(parts):
        t = schedule.t_min + length * (i + 0.5) / parts
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        x = alpha * clean + sigma * noise
        u = schedule.dalpha(t) * law.x0(x, alpha, sigma) + schedule.dsigma(t) * law.eps(x, alpha, sigma)
        total += float(u.square().mean())
    return total / parts * (length / scale) ** 2


def data_separation(target: Any, snr: float, samples: int = 4096, seed: int = 0) -> float:
    """How well noisy states tell which data they come from, `1 - E|x_0 - E[x_0|x]|^2/E|x_0|^2`, at most 1.

    Args:
        target: a mixture, or points of shape (n, d).
        snr: ratio of signal to noise level, `alpha/sigma` with data scaled to mean square 1 per dimension.
        samples: noisy states; `seed` of their randomness.
    """
    angle = math.atan(check.positive("snr", snr))
    law = as_law(target)
    clean, noise = _draws(law, samples, seed)
    scale = _scale(law)
    alpha, sigma = math.sin(angle), scale * math.cos(angle)
    missed = (clean - law.x0(alpha * clean + sigma * noise, alpha, sigma)).square().mean()
    return 1.0 - float(missed) / scale**2


def euler(denoiser: Denoises, noise: Tensor, steps: int) -> Tensor:
    """Euler's method on the velocity field, with equal steps in t from T to t_min: what straight paths are made for."""
    check.integer("steps", steps, 1)
    schedule = denoiser.schedule
    times = torch.linspace(schedule.T, schedule.t_min, steps + 1, dtype=torch.float64).tolist()
    x = noise
    for s, t in pairwise(times):
        clean, eps = denoiser.split(x, s)
        x = x + (t - s) * (schedule.dalpha(s) * clean + schedule.dsigma(s) * eps)
    return x


def as_law(data: Any) -> GaussianMixture:
    """A mixture as it is; points of shape (n, d) as equally likely data."""
    if isinstance(data, GaussianMixture):
        return data
    points = torch.as_tensor(data, dtype=torch.float64)
    if points.ndim != 2 or len(points) == 0 or not bool(points.isfinite().all()):
        raise InputError(f"data must be a mixture or finite points of shape (n, d), got {tuple(points.shape)}")
    return GaussianMixture(points, 0.0)


def _scale(law: GaussianMixture) -> float:
    """Root mean square per dimension."""
    scale = math.sqrt(float((law.weights[:, None] * (law.means.square() + law.variances)).sum()) / law.dim)
    if scale == 0.0:
        raise InputError("data must not all be zero: their mean square sets the scale of the noise")
    return scale


def _draws(law: GaussianMixture, samples: int, seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    clean = law.sample(check.integer("samples", samples, 1), generator)
    return clean, torch.randn(clean.shape, dtype=torch.float64, generator=generator)


def _turning(law: GaussianMixture, scale: float, angle: float, clean: Tensor, noise: Tensor) -> float:
    """gamma^2: mean square of the expected derivative of the noisy state by the angle.

    Equal to `1 - mmse/cos^2`, but a mean of squares, which does not cancel at either end.
    """
    alpha, sigma = math.sin(angle), scale * math.cos(angle)
    x = alpha * clean + sigma * noise
    turn = math.cos(angle) / scale * law.x0(x, alpha, sigma) - math.sin(angle) * law.eps(x, alpha, sigma)
    return float(turn.square().mean())
