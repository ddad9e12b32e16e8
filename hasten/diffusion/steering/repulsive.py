"""Repulsive score distillation: particles that are pulled to where a diffusion model is likely, and apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.core.kinds.steer import Particles, Steering
from hasten.core.method import Method
from hasten.diffusion.base import sampler, solving
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.numerics import time_grid
from hasten.numerics.noise import Schedule

Features = Callable[[Tensor], Tensor]

USE = (
    "target = hasten.diffusion.Annealed(denoiser, gamma=1.0, shape=(2,))\n"
    'particles = hasten.diffusion.steer(target, 32, "{name}", steps=100{{hyper}})'
)
CARD = Card(
    name="rsd",
    family="diffusion",
    title="Repulsive Score Distillation for Diverse Sampling of Diffusion Models",
    authors="Zilberstein, Mardani & Segarra",
    year=2024,
    arxiv="2406.16683",
    paper_id=291,
    summary="Score distillation of several particles at once that push each other away, so that they find other modes.",
    cost="One evaluation per particle and step, and the n^2 distances between n particles.",
    when="To optimise through a renderer or a measurement where one answer is not enough.",
    kinds=("steer",),
    search_space={"gamma": LogReal(0.1, 10.0), "lr": LogReal(5e-3, 0.2), "grid": Choice("uniform", "quadratic")},
    use=USE.format(name="rsd"),
)
SDS = Card(
    name="sds",
    family="diffusion",
    title="DreamFusion: Text-to-3D using 2D Diffusion",
    authors="Poole, Jain, Barron & Mildenhall",
    year=2022,
    arxiv="2209.14988",
    summary="Moves each particle down the error that a diffusion model makes in finding the noise added to it.",
    cost="One evaluation per particle and step.",
    when="As the baseline of score distillation; it seeks modes and forgets all but a few of them.",
    kinds=("steer",),
    search_space={"lr": LogReal(5e-3, 0.2), "grid": Choice("uniform", "quadratic")},
    use=USE.format(name="sds"),
)


@dataclass
class DistillationState:
    """Particles under way.

    Attributes:
        z: the particles.
        optimizer: Adam on them.
        times: grid from T to t_min; a step is taken at each time but the last.
        generator: source of all randomness.
        index: steps done.
    """

    z: Tensor
    optimizer: torch.optim.Optimizer
    times: time_grid.Grid
    generator: torch.Generator
    index: int = 0

    @property
    def x(self) -> Particles:
        """The particles, of equal weight."""
        return Particles(self.z.detach(), self.z.new_zeros(len(self.z), dtype=torch.float64))


@sampler(CARD)
@sampler(SDS, gamma=0.0)
@dataclass(frozen=True)
class RSD(Method[Steering, DistillationState]):
    """Score distillation of n particles with repulsion.

    At time t, from high to low: `x_i = alpha z_i + sigma noise_i`; the direction
    `d_i = eps(x_i, t) - noise_i - gamma sigma G_i`, and Adam's step on `weight (sigma/alpha) mean(d z)` with d held
    fixed. The repulsion `G_i = sum_j 2 k_ij (phi_i - phi_j)/h_i / sum_j k_ij` (over j other than i) has the kernel
    `k_ij = exp(-|phi_i - phi_j|^2/h_i)` on features `phi` of `x_i`, with `h_i = median_j |phi_i - phi_j|^2/log(n - 1)`;
    it goes back to x through phi. `gamma = 0` is plain score distillation (SDS).

    `steer` draws particles; `loss` distils into whatever makes them (a renderer); `reconstruct` explains measurements.

    Args:
        gamma: strength of the repulsion.
        weight: weight of the loss; with Adam and no other loss it makes no difference.
        features: function of noisy particles (n, ...) to features (n, ...), each of its own particle; the particles
            themselves if not given.
        lr, betas: of Adam.
        grid: kind of time grid, or the times themselves, decreasing.
        steps: steps to take; None plans with what the problem allows.

    Cost: one evaluation per particle and step, n^2 distances; with features, one backward pass through them.
    Source: Zilberstein et al. (2024), arXiv 2406.16683.
    """

    gamma: float = 1.0
    weight: float = 1.0
    features: Features | None = None
    lr: float = 2e-2
    betas: tuple[float, float] = (0.9, 0.99)
    grid: str | Sequence[float] = field(default="uniform", kw_only=True)
    steps: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check.nonnegative("gamma", self.gamma)
        check.positive("weight", self.weight)
        check.positive("lr", self.lr)
        for beta in self.betas:
            check.fraction("betas", beta)
        if isinstance(self.grid, str):
            check.one_of("grid", self.grid, tuple(time_grid.KINDS))
        else:
            object.__setattr__(self, "grid", tuple(float(t) for t in self.grid))
        if self.steps is not None:
            check.integer("steps", self.steps, 1)

    def init(self, problem: Steering, generator: torch.Generator) -> DistillationState:
        self.check_count(problem.count)
        times = self.times(problem.target.schedule, self.steps or problem.horizon)
        like = torch.empty((problem.count, *problem.target.shape), dtype=problem.dtype, device=problem.device)
        z = standard_normal(like, generator)
        return DistillationState(z, self.adam(z), times, generator)

    def step(self, problem: Steering, state: DistillationState) -> DistillationState:
        t, schedule, z = state.times[state.index], problem.target.schedule, state.z
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        noise = standard_normal(z, state.generator)
        noisy = alpha * z + sigma * noise
        with solving(lambda: f"step {state.index + 1} of {len(state.times) - 1}"):
            eps = -sigma * problem.target.terms(noisy, t, state.generator, slopes=False).slope
        z.grad = (self.weight * sigma / alpha / z.numel()) * self.direction(eps - noise, noisy, sigma)
        state.optimizer.step()
        state.index += 1
        return state

    def done(self, state: DistillationState) -> bool:
        return state.index >= len(state.times) - 1

    def loss(self, denoiser: Denoises, z: Tensor, t: float, generator: torch.Generator | None = None) -> Tensor:
        """`weight (sigma/alpha) mean(d z)`, whose gradient goes back to whatever made z.

        Args:
            denoiser: the diffusion model; its gradient is not taken.
            z: particles as the model knows data, e.g. rendered images, shape (n, ...).
            t: time, from high to low in the course of the optimisation (or drawn at random).
            generator: source of the noise; torch's global one if not given.
        """
        self.check_count(len(z))
        alpha, sigma = denoiser.schedule.alpha(t), denoiser.schedule.sigma(t)
        noise = standard_normal(z, generator or torch.default_generator)
        noisy = alpha * z.detach() + sigma * noise
        with torch.no_grad():
            eps = denoiser.eps(noisy, t)
        return (self.weight * sigma / alpha) * (self.direction(eps - noise, noisy, sigma) * z).mean()

    def direction(self, residual: Tensor, noisy: Tensor, sigma: float) -> Tensor:
        """What the particles move against: `residual - gamma sigma G(noisy)`."""
        if self.gamma == 0.0:
            return residual
        return residual - (self.gamma * sigma) * repulsion(noisy, self.features)

    def times(self, schedule: Schedule, steps: int | None) -> time_grid.Grid:
        """The times of the steps, and the end."""
        if not isinstance(self.grid, str):
            return time_grid.checked(schedule, self.grid)
        if steps is None:
            raise InputError("score distillation: give steps, or a grid of times")
        return time_grid.make(schedule, steps, self.grid)

    def adam(self, *tensors: Tensor) -> torch.optim.Adam:
        """The optimizer of the particles."""
        return torch.optim.Adam(tensors, lr=self.lr, betas=self.betas)

    def check_count(self, count: int) -> None:
        """Refuse so few particles that the kernel's width does not exist."""
        if self.gamma > 0.0 and count < 3:
            raise InputError(
                f"repulsion needs at least 3 particles, as the width of its kernel divides by log(n - 1); got {count}; "
                "use more particles, or gamma=0 for plain score distillation"
            )


def repulsion(x: Tensor, features: Features | None = None) -> Tensor:
    """Gradient by x of the log kernel density of all other particles' features, with the sign that drives them apart.

    Args:
        x: particles, shape (n, ...), n at least 3.
        features: function of x, of shape (n, ...); x itself if not given.
    """
    if features is None:
        return _spread(x.flatten(1)).view_as(x)
    with torch.enable_grad():
        at = x.detach().requires_grad_(True)
        phi = features(at)
        if phi.ndim < 2 or len(phi) != len(x):
            raise InputError(f"features must return shape ({len(x)}, ...), got {tuple(phi.shape)}")
        (back,) = torch.autograd.grad((phi.flatten(1) * _spread(phi.detach().flatten(1))).sum(), at)
    return back


def _spread(phi: Tensor) -> Tensor:
    """Repulsion between rows of phi, shape (n, d). The smallest distance, to itself, is no part of a row's median."""
    n = len(phi)
    squares = torch.cdist(phi, phi, compute_mode="donot_use_mm_for_euclid_dist").square()
    apart = ~torch.eye(n, dtype=torch.bool, device=phi.device)
    h = squares.kthvalue(n // 2 + 1, dim=1, keepdim=True).values / math.log(n - 1)
    kernel = torch.where(apart & (h > 0), torch.exp(-squares / h), apart.to(phi))
    mean = kernel @ phi / kernel.sum(1, keepdim=True)
    return torch.where(h > 0, 2.0 / h, 0.0) * (phi - mean)


def reconstruct(
    denoiser: Denoises,
    measurement: Tensor,
    operator: Callable[[Tensor], Tensor],
    shape: Sequence[int],
    count: int = 4,
    method: RSD | None = None,
    steps: int = 500,
    *,
    decode: Callable[[Tensor], Tensor] | None = None,
    rho: float = 0.2,
    lr: float | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Several different explanations of a measurement `y = operator(x)`, likely under a diffusion model.

    Latents z and data x are optimised in turn, both by Adam: z on
    `mean((x - decode(z))^2)/2 + (weight/rho)(sigma/alpha) mean(d z)` with d as in `RSD`, then x on
    `mean((y - operator(x))^2)/2 + (rho/2) mean((x - decode(z))^2)`.

    Args:
        denoiser: model of the latents (or of the data, without `decode`).
        measurement: y, of the shape that `operator` gives for one sample (or for all of them).
        operator: differentiable function of data (count, ...).
        shape: shape of one latent.
        count: explanations to find.
        method: `RSD(weight=0.1)` if not given; `RSD(gamma=0.0, weight=0.1)` for no repulsion.
        steps: steps of both optimisations.
        decode: differentiable decoder from latents to data.
        rho: how closely the data follow the latents, positive.
        lr: of x; that of z if not given.
        generator: source of all randomness; torch's global one if not given.
        dtype, device: of the particles.

    Returns:
        The data x, shape (count, ...).

    Source: Zilberstein et al. (2024), arXiv 2406.16683.
    """
    method = RSD(weight=0.1) if method is None else method
    method.check_count(check.integer("count", count, 1))
    check.integer("steps", steps, 1)
    check.positive("rho", rho)
    generator = generator or torch.default_generator
    z = standard_normal(torch.empty((count, *shape), dtype=dtype, device=device), generator).requires_grad_(True)
    with torch.no_grad():
        x = z if decode is None else decode(z)
    x = standard_normal(x, generator).requires_grad_(True)
    seen = operator(x.detach())
    try:
        y = measurement.to(seen).expand(seen.shape)
    except RuntimeError:
        got = tuple(measurement.shape)
        raise InputError(f"operator makes shape {tuple(seen.shape)}, which a measurement {got} does not fit") from None
    of_z = method.adam(z)
    of_x = torch.optim.Adam([x], lr=check.positive("lr", method.lr if lr is None else lr), betas=method.betas)
    times = method.times(denoiser.schedule, steps)
    for t in times[:-1]:
        clean = z if decode is None else decode(z)
        gap = 0.5 * (x.detach() - clean).square().mean()
        _descend(of_z, gap + method.loss(denoiser, z, t, generator) / rho)
        with torch.no_grad():
            clean = z if decode is None else decode(z)
        _descend(of_x, 0.5 * (y - operator(x)).square().mean() + 0.5 * rho * (x - clean.detach()).square().mean())
    return x.detach()


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
