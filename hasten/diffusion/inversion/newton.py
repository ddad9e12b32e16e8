"""Newton inversion: each backward DDIM step is an implicit equation, solved by a few cheap Newton iterations."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, Integer
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import SamplerState, planned, sampler
from hasten.diffusion.inversion.base import Inverter, inversion

VARIANTS = ("rnri", "exact", "fixed_point")
FLAT = 1e-6
LARGEST = 64

CARD = Card(
    name="newton-inversion",
    family="diffusion",
    title="Regularized Newton Raphson Inversion for Text-to-Image Diffusion Models",
    authors="Samuel, Meiri, Darshan, Avidan, Chechik & Ben-Ari",
    year=2023,
    arxiv="2312.12540",
    paper_id=251,
    summary="Solves each implicit step of DDIM's inversion by Newton's method on one scalar residual per sample.",
    cost="Per step `iters` forward and backward passes and one more forward pass; the graph of one evaluation.",
    when="When DDIM's own round trip must hold and gradients of the network fit into memory.",
    kinds=("invert",),
    search_space={
        "iters": Integer(1, 4),
        "prior_weight": Choice(0.0, 0.01, 0.1),
        "grid": Choice("quadratic", "uniform"),
    },
    use='noise = hasten.diffusion.invert(denoiser, torch.randn(16, 2), method="newton-inversion", steps=20{hyper})',
)


class NewtonState(SamplerState):
    """The walk to the noise, which knows the data it came from and how to count a backward pass."""

    clean: Tensor
    count: Any


@sampler(CARD)
@dataclass(frozen=True)
class NewtonInversion(Inverter):
    """Inversion of DDIM by solving every step's equation `z = f(z) := (alpha_t/alpha_s) z_s + c eps(z, t)`.

    `rnri`: Newton's method on the scalar `F(z) = |f(z) - z|_1 + prior_weight |f(z) - alpha_t x_0|^2/(2 sigma_t^2)`,
    whose second term is the negative log density of noisy states of the data, up to a constant: with `g` the gradient
    of F, `z_i <- z_i - F/(D g_i)` for each of the D coordinates, left alone where `|g_i| < 1e-6`. Iterations begin at
    `z_s`; `f` of the iterate with the smallest F, the last one included, is the answer.
    `exact`: `z <- z - J^{-1}(f(z) - z)` with the whole Jacobian, for few coordinates. `fixed_point`: `z <- f(z)`; with
    one iteration this is DDIM inversion.

    Give the denoiser the condition that describes the data (its prompt): without one, the equation solved is that of
    another trajectory.

    Args:
        iters: Newton iterations (or evaluations of `fixed_point`) per step.
        prior_weight: pull towards the likely noisy states of the data; 0 solves the equation alone.
        variant: `rnri`, `exact` or `fixed_point`.
        grid, steps: see `Sampler`; the grid is walked from t_min to T.

    Cost: per step `2 iters + 1` evaluations, a backward pass counted as one (`exact`: `iters (1 + D)`, `fixed_point`:
    `iters`). Source: Samuel et al. (2023), arXiv 2312.12540.
    """

    iters: int = 2
    prior_weight: float = 0.1
    variant: str = "rnri"

    def __post_init__(self) -> None:
        super().__post_init__()
        check.integer("iters", self.iters, 1)
        check.nonnegative("prior_weight", self.prior_weight)
        check.one_of("variant", self.variant, VARIANTS)

    @property
    def evaluations(self) -> int:
        return self.iters if self.variant == "fixed_point" else 2 * self.iters + 1

    def init(self, problem: Any, generator: torch.Generator) -> NewtonState:
        problem = inversion(self, problem)
        size = problem.clean[0].numel()
        if self.variant == "exact" and size > LARGEST:
            raise InputError(
                f'variant="exact" solves with a {size} x {size} Jacobian per sample, more than {LARGEST} coordinates '
                'allow; use variant="rnri"'
            )
        method = self
        if self.variant == "exact" and self.steps is None and problem.horizon is not None:
            method = replace(self, steps=max(1, problem.horizon // (self.iters * (1 + size))))
        state = NewtonState(problem.clean, planned(method, problem.schedule, problem.horizon), generator)
        state.clean, state.count = problem.clean, problem.count
        return state

    def advance(self, denoiser: Denoises, state: NewtonState) -> Tensor:
        _, t, scale, weight = state.plan[state.index]
        known = state.x * scale

        def f(z: Tensor) -> Tensor:
            return known.add(denoiser.eps(z, t), alpha=weight)

        if self.variant == "fixed_point":
            z = state.x
            for _ in range(self.iters):
                z = f(z)
            return z
        if self.variant == "exact":
            return self._exact(f, state)
        mean = denoiser.schedule.alpha(t) * state.clean
        return self._rnri(f, state, mean, denoiser.schedule.sigma(t))

    def _rnri(self, f: Any, state: NewtonState, mean: Tensor, sigma: float) -> Tensor:
        z, best, lowest = state.x, state.x, None
        for i in range(self.iters + 1):
            last = i == self.iters
            with torch.set_grad_enabled(not last):
                z = z.detach().requires_grad_(not last)
                new = f(z)
                residual = self._residual(new, z, mean, sigma)
                total = residual.sum()
            value = residual.detach()
            better = value < (value + 1.0 if lowest is None else lowest)
            best = torch.where(_like(better, z), new.detach(), best)
            lowest = value if lowest is None else torch.minimum(lowest, value)
            if not last:
                (gradient,) = torch.autograd.grad(total, z)
                state.count(1)
                z = newton(z.detach(), value, gradient)
        return best

    def _residual(self, new: Tensor, z: Tensor, mean: Tensor, sigma: float) -> Tensor:
        residual = (new - z).abs().flatten(1).sum(1)
        if self.prior_weight > 0.0:
            residual = residual + (0.5 * self.prior_weight / sigma**2) * (new - mean).square().flatten(1).sum(1)
        return residual

    def _exact(self, f: Any, state: NewtonState) -> Tensor:
        z = state.x
        for _ in range(self.iters):
            with torch.enable_grad():
                z = z.detach().requires_grad_()
                miss = (f(z) - z).flatten(1)
                rows = [torch.autograd.grad(miss[:, i].sum(), z, retain_graph=True)[0] for i in range(miss.shape[1])]
            state.count(miss.shape[1])
            jacobian = torch.stack([row.flatten(1) for row in rows], dim=1)
            z = z.detach() - torch.linalg.solve(jacobian, miss.detach()).view_as(z)
        return z


def newton(z: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
    """One step per coordinate towards `value = 0`: `z_i - value/(D gradient_i)`, where the gradient is not flat."""
    sloping = gradient.abs() >= FLAT
    step = _like(value, z) / z[0].numel() / torch.where(sloping, gradient, 1.0)
    return z - torch.where(sloping, step, 0.0)


def _like(values: Tensor, x: Tensor) -> Tensor:
    """One value per sample, to be broadcast over x."""
    return values.reshape(-1, *(1,) * (x.ndim - 1))
