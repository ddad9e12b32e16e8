"""Shortest-path diffusion: one noise schedule per frequency, along the geodesic from the data's spectrum to white."""

from __future__ import annotations

from collections.abc import Sequence
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
from hasten.diffusion.base import Sampler, Step, sampler
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.numerics.metrics import gaussian_kl
from hasten.numerics.noise import FlowMatching, Schedule
from hasten.numerics.time_grid import Grid

CARD = Card(
    name="shortest-path",
    family="diffusion",
    title="Image generation with shortest path diffusion",
    authors="Das, Fotiadis, Batra, Nabiei, Liao, Vakili, Shiu & Bernacchia",
    year=2023,
    arxiv="2306.00501",
    paper_id=344,
    summary="Noises each frequency of an image at its own pace, on the shortest path from its spectrum to white noise.",
    cost="One evaluation and four Fourier transforms per step.",
    when="For a model trained on this path, where images shall come in few ancestral steps.",
    kinds=("sample",),
    needs=("spectrum",),
    use=(
        "from hasten.diffusion import Denoiser, ShortestPathSampler, ShortestPathSchedule\n"
        "path = ShortestPathSchedule.power_law(8)\n"
        "network = path.gaussian_eps  # trained on path.noisy(images, eps, t)\n"
        "model = Denoiser(network, path.clock)\n"
        "samples = hasten.diffusion.sample(model, (16, 1, 8, 8), ShortestPathSampler(path), steps=20)"
    ),
)

MOST = 0.999


@dataclass(frozen=True)
class ShortestPathSchedule:
    """Variance-preserving noise per frequency, `x_t = sqrt(a_k(t)) x_0 + sqrt(1 - a_k(t)) eps` in the Fourier domain.

    Frequency k with power `S_k` in the data has power `S_k^{1-t}` at time t, which is the geodesic of the Fisher metric
    from N(0, S) to N(0, 1): `a_k(t) = (1 - S_k^{1-t})/(1 - S_k)`. Time runs from 0 (data) to 1 (noise). Transforms
    are two-dimensional, orthonormal, over the last two dimensions of a batch.

    Args:
        spectrum: power of each frequency, rows of positive numbers in the order of `torch.fft.fft2`.

    Source: Das et al. (2023), arXiv 2306.00501.
    """

    spectrum: tuple[tuple[float, ...], ...]
    _powers: Tensor = field(init=False, repr=False, compare=False)

    def __init__(self, spectrum: Tensor | Sequence[Sequence[float]]) -> None:
        powers = _powers(spectrum)
        object.__setattr__(self, "spectrum", tuple(tuple(row) for row in powers.tolist()))
        object.__setattr__(self, "_powers", powers)

    @classmethod
    def power_law(cls, size: int, c1: float = 1.59, c2: float = 0.0086, m: float = 2.0) -> ShortestPathSchedule:
        """Power `c1/|c2 + |k||^m` at k cycles per image, as fitted to natural images in [-1, 1], for squares."""
        check.integer("size", size, 1)
        for name, value in (("c1", c1), ("c2", c2), ("m", m)):
            check.positive(name, value)
        along = torch.fft.fftfreq(size, d=1.0 / size, dtype=torch.float64)
        return cls(c1 / (c2 + torch.hypot(along[:, None], along)) ** m)

    @classmethod
    def fit(cls, images: Tensor) -> ShortestPathSchedule:
        """The mean power spectrum of centred images, shape (n, ..., height, width)."""
        if images.ndim < 3 or len(images) < 2:
            raise InputError(f"images must be a batch of at least two, (n, ..., h, w); got {tuple(images.shape)}")
        centred = images.double() - images.double().mean(0)
        power = torch.fft.fft2(centred, norm="ortho").abs().square()
        return cls(power.flatten(0, -3).mean(0))

    @property
    def clock(self) -> Schedule:
        """Times from 1 to 0 for `Denoiser`; its levels are those of no frequency in particular."""
        return FlowMatching(T=1.0, t_min=0.0)

    def alpha_bar(self, t: float) -> Tensor:
        """Share of the data's power that is left, per frequency; shape (height, width), float64."""
        logs = self._powers.log()
        flat = logs.abs() < 1e-9
        share = torch.expm1((1.0 - check.real("t", t, 0.0, 1.0)) * logs) / torch.expm1(logs)
        return torch.where(flat, 1.0 - t, share)

    def betas(self, grid: Sequence[float]) -> Tensor:
        """Variances added between the times of a grid that decreases to 0, noisiest first, at most 0.999."""
        levels = torch.stack([self.alpha_bar(t) for t in grid])
        return (1.0 - levels[:-1] / levels[1:]).clamp(max=MOST)

    def levels(self, grid: Sequence[float]) -> Tensor:
        """`alpha_bar` at the times of a grid, with steps that the clipped betas allow; shape (times, height, width)."""
        kept = (1.0 - self.betas(grid)).flip(0).cumprod(0).flip(0)
        last = self.alpha_bar(grid[-1])
        return torch.cat((kept * last, last[None]))

    def noisy(self, x0: Tensor, eps: Tensor, t: float) -> Tensor:
        """Noisy images at time t from clean ones and white noise; a network learns to tell `eps` from it."""
        left = self.alpha_bar(t).to(x0)
        return _filtered(x0, left.sqrt()) + _filtered(eps, (1.0 - left).clamp(min=0.0).sqrt())

    def gaussian_eps(self, x: Tensor, t: Tensor) -> Tensor:
        """The exact network for stationary Gaussian images of this spectrum; all times equal."""
        left = self.alpha_bar(float(t.flatten()[0]))
        power = left * self._powers + 1.0 - left
        return _filtered(x, ((1.0 - left).sqrt() / power).to(x))


@sampler(CARD)
@dataclass(frozen=True)
class ShortestPathSampler(Sampler):
    """DDIM and ancestral sampling with one schedule per frequency.

    Args:
        path: the schedule that the model was trained on; its denoiser predicts `eps` and has `path.clock`.
        eta: share of fresh noise, from 0 (DDIM) to 1 (ancestral).
        grid, steps: see `Sampler`.

    Cost: one evaluation and four Fourier transforms per step. Source: Das et al. (2023), arXiv 2306.00501.
    """

    path: ShortestPathSchedule = field(default_factory=lambda: ShortestPathSchedule.power_law(8))
    eta: float = 1.0
    grid: str | Sequence[float] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.real("eta", self.eta, 0.0, 1.0)
        if not isinstance(self.path, ShortestPathSchedule):
            raise InputError(f"path must be a ShortestPathSchedule, got {self.path!r}")

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        return [(s, *rest) for s, rest in zip(times, _coefficients(self.path.levels(times), self.eta))]

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        s, scale, weight, fresh = state.plan[state.index]
        x = state.x
        if x.shape[-2:] != scale.shape:
            raise InputError(f"samples must end in the path's {tuple(scale.shape)} pixels, got {tuple(x.shape)}")
        moved = _filtered(x, scale.to(x)) + _filtered(denoiser.eps(x, s), weight.to(x))
        if not bool((fresh > 0).any()):
            return moved
        return moved + _filtered(standard_normal(x, state.generator), fresh.to(x))


def fisher_length(schedule: ShortestPathSchedule | Schedule, spectrum: Any, parts: int = 4000) -> float:
    """Length, in the Fisher metric, of the path that Gaussian data of this spectrum take to noise.

    `int sqrt(1/2 sum_k (d log P_k/dt)^2) dt`, P_k the power at time t. The shortest is `sqrt(1/2 sum_k log^2 S_k)`.

    Args:
        schedule: one per frequency, or one for all.
        spectrum: power of each frequency in the data.
        parts: pieces of the polygon.
    """
    powers = _powers(spectrum)
    check.integer("parts", parts, 1)
    if isinstance(schedule, ShortestPathSchedule):
        left = torch.stack([schedule.alpha_bar(i / parts) for i in range(parts + 1)])
        path = left * powers + 1.0 - left
    else:
        t = torch.linspace(schedule.t_min, schedule.T, parts + 1, dtype=torch.float64)[:, None, None]
        path = schedule.alpha(t) ** 2 * powers + schedule.sigma(t) ** 2
    return float((0.5 * path.log().diff(dim=0).square().sum((1, 2))).sqrt().sum())


def spectral_kl(levels: Tensor, spectrum: Any, eta: float = 1.0) -> float:
    """Exact divergence KL(data | samples) for Gaussian data of this spectrum and the exact network.

    The sampler is linear and does not mix frequencies, so the power of each follows a recursion.

    Args:
        levels: `alpha_bar` at the times of a grid, noisiest first, ending at 1; shape (times, height, width) or
            (times, 1, 1) for one schedule for all frequencies.
        spectrum: power of each frequency in the data.
        eta: share of fresh noise.
    """
    powers = _powers(spectrum)
    drawn = torch.ones_like(powers)
    for left, (scale, weight, fresh) in zip(levels, _coefficients(levels, eta)):
        answer = (1.0 - left).sqrt() / (left * powers + 1.0 - left)
        drawn = (scale + weight * answer).square() * drawn + fresh.square()
    return gaussian_kl(powers, drawn)


def _coefficients(levels: Tensor, eta: float) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Per step, factors of the state, of the noise in it and of fresh noise, for every frequency."""
    steps = []
    for now, then in pairwise(levels):
        scale = (then / now).sqrt()
        fresh = eta * ((1.0 - then) / (1.0 - now) * (1.0 - now / then)).clamp(min=0.0).sqrt()
        kept = (1.0 - then - fresh.square()).clamp(min=0.0).sqrt()
        steps.append((scale, kept - scale * (1.0 - now).sqrt(), fresh))
    return steps


def _filtered(x: Tensor, factor: Tensor) -> Tensor:
    """Images with each frequency multiplied by a factor."""
    return torch.fft.ifft2(torch.fft.fft2(x, norm="ortho") * factor, norm="ortho").real


def _powers(spectrum: Any) -> Tensor:
    powers = torch.as_tensor(spectrum, dtype=torch.float64)
    if powers.ndim != 2 or powers.numel() == 0:
        raise InputError(f"spectrum must have shape (height, width), got {tuple(powers.shape)}")
    if not bool((powers > 0).all()) or not bool(powers.isfinite().all()):
        worst = int(np.argmin(powers.numpy()))
        raise InputError(
            f"spectrum must be positive at every frequency, got {powers.flatten()[worst]:.4g} at index {worst}; raise "
            "it to the power of the rounding noise of the images"
        )
    return powers
