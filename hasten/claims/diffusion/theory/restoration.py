"""Claims of restoration-degradation samplers, on blurred Gaussian data, where the samples' covariance is exact."""

from __future__ import annotations

from functools import lru_cache

import torch
from scipy.fft import dct
from torch import Tensor

from hasten.claims.diffusion.mixture_2d import DENOISER, POINTS
from hasten.core.claim import claim
from hasten.diffusion.base import SamplerState, sample
from hasten.diffusion.theory.restoration import RestorationDegradation
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.noise import VE
from hasten.numerics.reference import order_fit
from hasten.problems.digits import digits

COUNTS = (50, 100, 200, 400)
BLUR = 0.5
SCHEDULE = VE(sigma_min=0.02, sigma_max=1.0)
SCALE = "8x8 digits as a Gaussian, blur exp(-w^2 tau) with tau from 0 to 0.5, sigma from 0.02 to 1, uniform in t"


def _damping(t: float) -> Tensor:
    """`exp(-w^2 tau_t)` of every frequency; the frequencies of the cosine basis are `pi k/8` along each axis."""
    along = torch.arange(8, dtype=torch.float64) * (torch.pi / 8)
    squares = (along[:, None].square() + along.square()).flatten()
    return (-squares * BLUR * t).exp()


@lru_cache(maxsize=1)
def _covariance() -> Tensor:
    """Covariance of the digits, scaled to [-1, 1], in the cosine basis."""
    basis = torch.from_numpy(dct(torch.eye(8, dtype=torch.float64).numpy(), norm="ortho", axis=0))
    coefficients = (basis @ (2 * digits()[0].double() - 1).reshape(-1, 8, 8) @ basis.mT).flatten(1)
    return torch.cov(coefficients.mT)


def _total(t: float) -> Tensor:
    damping = _damping(t)
    return damping[:, None] * _covariance() * damping + SCHEDULE.sigma(t) ** 2 * torch.eye(64, dtype=torch.float64)


@lru_cache(maxsize=4096)
def _gain(t: float) -> Tensor:
    """Matrix of the posterior mean, `Sigma A (A Sigma A + sigma^2)^-1`."""
    return torch.linalg.solve(_total(t), _damping(t)[:, None] * _covariance()).mT


def _sampler(noise: str) -> RestorationDegradation:
    return RestorationDegradation(
        lambda clean, t: clean * _damping(t), lambda x, t: x @ _gain(t).mT, noise, grid="uniform"
    )


@lru_cache(maxsize=16)
def _error(noise: str, steps: int) -> float:
    """Relative error of the samples' covariance, in the Frobenius norm.

    The sampler is linear, so its step applied to the unit vectors is its matrix; fresh noise adds its variance.
    """
    method = _sampler("none" if noise == "fresh" else noise)
    plan = method.plan(SCHEDULE, method.times(SCHEDULE, steps))
    denoiser = Denoiser(lambda x, t: x, SCHEDULE)
    covariance = _total(SCHEDULE.T)
    for index, (_, t, *_) in enumerate(plan):
        unit = SamplerState(torch.eye(64, dtype=torch.float64), plan, torch.default_generator, index)
        matrix = method.advance(denoiser, unit).mT
        covariance = matrix @ covariance @ matrix.mT
        if noise == "fresh":
            covariance += SCHEDULE.sigma(t) ** 2 * torch.eye(64, dtype=torch.float64)
    exact = _total(SCHEDULE.t_min)
    return float((covariance - exact).norm() / exact.norm())


@claim(
    method="diffusion.restoration-degradation",
    baseline="diffusion.ddim",
    statement="With A_t = alpha_t it is DDIM: five-component mixture in 2-d, exact score, VP, 20 steps.",
    quantity="largest difference to DDIM's samples",
    threshold=1e-12,
    paper_id=281,
    aggregate="max",
)
def is_ddim_for_plain_noise(seed: int) -> float:
    noise = torch.randn(POINTS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    ours = sample(DENOISER, noise=noise, sampler="restoration-degradation", steps=20, grid="quadratic")
    return float((ours - sample(DENOISER, noise=noise, sampler="ddim", steps=20, grid="quadratic")).abs().max())


@claim(
    method="diffusion.restoration-degradation",
    baseline="exact covariance",
    statement=f"For blur the covariance of the samples converges at order 0.9 or more, 50 to 400 steps: {SCALE}.",
    quantity="fitted order of the relative covariance error",
    relation=">=",
    threshold=0.9,
    paper_id=281,
    seeds=(0,),
)
def order_for_blur(seed: int) -> float:
    return order_fit([_error("aimed", n) for n in COUNTS], COUNTS)


@claim(
    method="diffusion.restoration-degradation",
    baseline="the same sampler with fresh noise",
    statement=f"Fresh noise instead of the aimed one leaves 5 times its error or more at 400 steps: {SCALE}.",
    quantity="relative covariance error with fresh noise, ratio to aimed noise, 400 steps",
    relation=">=",
    threshold=5.0,
    paper_id=281,
    seeds=(0,),
)
def fresh_noise_does_not_converge(seed: int) -> float:
    return _error("fresh", 400) / _error("aimed", 400)


@claim(
    method="diffusion.restoration-degradation",
    baseline="the same sampler without noise",
    statement=f"No noise instead of the aimed one leaves 5 times its error or more at 400 steps: {SCALE}.",
    quantity="relative covariance error without noise, ratio to aimed noise, 400 steps",
    relation=">=",
    threshold=5.0,
    paper_id=281,
    seeds=(0,),
)
def no_noise_does_not_converge(seed: int) -> float:
    return _error("none", 400) / _error("aimed", 400)
