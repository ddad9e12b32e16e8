"""Claims of splitting integrators."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hasten.core.claim import claim
from hasten.diffusion.base import sample
from hasten.diffusion.samplers.phase_space import SplittingIntegrator
from hasten.numerics.mixture import circle
from hasten.numerics.phase_space import PSLD, lift
from hasten.numerics.reference import rms

MODEL: Any = lift(circle(), PSLD())
SCALE = "five-component mixture in 2-d lifted to phase space, exact score, t from 1 to 0.01, about 100 evaluations"
NOTE = (
    "The paper's own figures are FIDs on CIFAR-10 (2.11 against 2.57 at 100 evaluations); here the score is exact and "
    "the distance of the positions to the exact ODE solution is measured."
)


@lru_cache(maxsize=8)
def _start_and_exact(seed: int) -> tuple[Tensor, Tensor]:
    noise = MODEL.schedule.prior((256, 2), torch.Generator().manual_seed(seed))
    return noise, MODEL.solve(noise, steps=1500)


def _error(seed: int, scheme: str, steps: int) -> float:
    noise, exact = _start_and_exact(seed)
    return rms(sample(MODEL, noise=noise, sampler=SplittingIntegrator(scheme), steps=steps)[:, 0], exact[:, 0])


@claim(
    method="diffusion.splitting",
    baseline="Euler's method",
    statement=f"Naive symplectic Euler (50 steps) has at most 0.6 times the error of Euler (100 steps): {SCALE}.",
    quantity="RMS error of the positions, ratio to Euler",
    threshold=0.6,
    paper_id=287,
    note=NOTE,
)
def error_of_symplectic_euler(seed: int) -> float:
    return _error(seed, "nse", 50) / _error(seed, "euler", 100)


@claim(
    method="diffusion.splitting",
    baseline="Euler's method",
    statement=f"Naive velocity Verlet (33 steps) has at most 0.4 times the error of Euler (100 steps): {SCALE}.",
    quantity="RMS error of the positions, ratio to Euler",
    threshold=0.4,
    paper_id=287,
    note=NOTE,
)
def error_of_velocity_verlet(seed: int) -> float:
    return _error(seed, "nvv", 33) / _error(seed, "euler", 100)
