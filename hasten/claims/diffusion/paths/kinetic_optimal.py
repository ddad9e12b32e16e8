"""Claims of kinetic-optimal paths."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from hasten.core.claim import claim
from hasten.diffusion.paths.kinetic_optimal import KineticOptimalPath, data_separation, euler, kinetic_energy
from hasten.numerics.mixture import GaussianMixture, circle
from hasten.numerics.noise import FlowMatching, Schedule, VPCosine
from hasten.numerics.reference import rk4_lambda, rms

SCALE = "five-component mixture in 2-d with mean square 1 per dimension"
NOTE = "The paper's own figures are likelihoods and FIDs on ImageNet; here the velocity field is exact."
LAW = circle()
LAW = GaussianMixture(LAW.means / math.sqrt(2.15), LAW.variances / 2.15, LAW.weights)
STRAIGHT = FlowMatching(T=1.0, t_min=0.0)
END = 1e-5


@lru_cache(maxsize=8)
def _path(seed: int) -> KineticOptimalPath:
    return KineticOptimalPath.fit(LAW, seed=seed)


@lru_cache(maxsize=16)
def _energy(schedule: Schedule, seed: int) -> float:
    return kinetic_energy(schedule, LAW, seed=1000 + seed)


@lru_cache(maxsize=8)
def _start_and_exact(seed: int) -> tuple[Tensor, Tensor]:
    noise = torch.randn(256, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return noise, rk4_lambda(LAW.denoiser(FlowMatching(T=1.0 - END, t_min=END)), noise, steps=1500)


def _error(seed: int, schedule: Schedule, steps: int) -> float:
    noise, exact = _start_and_exact(seed)
    return rms(euler(LAW.denoiser(schedule, "x0"), noise, steps), exact)


def _ratio(seed: int, steps: int) -> float:
    path = _path(seed)
    whole = KineticOptimalPath(path.gamma, path.scale, T=1.0, t_min=0.0)
    return _error(seed, whole, steps) / _error(seed, STRAIGHT, steps)


@claim(
    method="diffusion.kinetic-optimal-path",
    baseline="2 - 2 cos(Phi)",
    statement=f"The measured energy of the optimal path differs from the formula by at most 2%: {SCALE}.",
    quantity="relative difference of energies",
    threshold=0.02,
    paper_id=349,
    note=NOTE,
)
def energy_is_the_formula(seed: int) -> float:
    path = _path(seed)
    return abs(_energy(path, seed) / path.energy - 1.0)


@claim(
    method="diffusion.kinetic-optimal-path",
    baseline="variance-preserving cosine path",
    statement=f"The optimal path has at most 0.85 times the energy of the cosine path: {SCALE}.",
    quantity="kinetic energy, ratio to the cosine path",
    threshold=0.85,
    paper_id=349,
    note=NOTE,
)
def energy_against_cosine(seed: int) -> float:
    return _energy(_path(seed), seed) / _energy(VPCosine(s=1e-6, T=0.9999, t_min=1e-4), seed)


@claim(
    method="diffusion.kinetic-optimal-path",
    baseline="straight conditional paths",
    statement=f"The optimal path has at most 0.45 times the energy of straight conditional paths: {SCALE}.",
    quantity="kinetic energy, ratio to straight paths",
    threshold=0.45,
    paper_id=349,
    note=NOTE,
)
def energy_against_straight(seed: int) -> float:
    return _energy(_path(seed), seed) / _energy(FlowMatching(T=1.0 - END, t_min=END), seed)


@claim(
    method="diffusion.kinetic-optimal-path",
    baseline="straight conditional paths",
    statement=f"With 4, 8 and 16 Euler steps the error is at most 0.7 times that of straight paths: {SCALE}.",
    quantity="RMS error to the exact flow, ratio, the worst of 4, 8 and 16 steps",
    threshold=0.7,
    paper_id=349,
    note=NOTE,
)
def error_of_euler(seed: int) -> float:
    return max(_ratio(seed, steps) for steps in (4, 8, 16))


def _separation(dim: int, seed: int) -> float:
    points = torch.randn(4, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return data_separation(points, 0.25, samples=512)


@claim(
    method="diffusion.kinetic-optimal-path",
    baseline="optimum, 1",
    statement="Four Gaussian points in 4096 dimensions are separated at t=0.2 (signal to noise 1:4): 0.999 or more.",
    quantity="data separation, d=4096",
    relation=">=",
    threshold=0.999,
    paper_id=349,
    note=NOTE,
)
def separation_in_high_dimension(seed: int) -> float:
    return _separation(4096, seed)


@claim(
    method="diffusion.kinetic-optimal-path",
    baseline="optimum, 1",
    statement="The separation of four Gaussian points at t=0.2 rises by 0.4 or more from 16 to 256 dimensions.",
    quantity="data separation, d=256 less d=16",
    relation=">=",
    threshold=0.4,
    paper_id=349,
    note=NOTE,
)
def separation_rises_with_dimension(seed: int) -> float:
    return _separation(256, seed) - _separation(16, seed)
