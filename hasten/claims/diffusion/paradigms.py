"""Claims of ParaDiGMS."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hasten.claims.diffusion.mixture_2d import DENOISER, start_and_exact
from hasten.core.claim import claim
from hasten.diffusion.base import sample
from hasten.numerics.reference import rms

STEPS = 100
SCALE = "five-component mixture in 2-d, exact score, VP, DDIM with 100 steps uniform in t, 256 points"
NOTE = (
    "The paper's own figures are seconds: 0.2 s for a 100-step diffusion policy, 16 s for 1000 steps of Stable "
    "Diffusion v2. Rounds are what becomes of the steps where a window fits into one batch."
)


def _parallel(seed: int, **hyper: Any) -> tuple[Tensor, Tensor, dict[str, int]]:
    """Parallel samples, DDIM's own, and what the parallel ones cost."""
    noise, _ = start_and_exact(seed)
    costs: dict[str, int] = {}
    parallel = sample(DENOISER, noise=noise, sampler="paradigms", steps=STEPS, costs=costs, **hyper)
    return parallel, sample(DENOISER, noise=noise, sampler="ddim", steps=STEPS, grid="uniform"), costs


@claim(
    method="diffusion.paradigms",
    baseline="diffusion.ddim",
    statement=f"With a window of 20 and tol 0.01, at most 0.2 rounds per step: {SCALE}.",
    quantity="sequential rounds per step of DDIM",
    threshold=0.2,
    paper_id=138,
    note=NOTE,
)
def rounds_per_step(seed: int) -> float:
    return _parallel(seed, window=20, tol=0.01)[2]["rounds"] / STEPS


@claim(
    method="diffusion.paradigms",
    baseline="diffusion.ddim",
    statement=f"With a window of 20 and tol 0.01, the samples differ from DDIM's by at most 5e-3: {SCALE}.",
    quantity="RMS distance to DDIM's samples",
    threshold=5e-3,
    paper_id=138,
    note=NOTE,
)
def distance_to_sequential(seed: int) -> float:
    parallel, sequential, _ = _parallel(seed, window=20, tol=0.01)
    return rms(parallel, sequential)


@claim(
    method="diffusion.paradigms",
    baseline="diffusion.ddim",
    statement=f"With the whole trajectory as window and tol 1e-3, at most 15 rounds: {SCALE}.",
    quantity="sequential rounds",
    threshold=15,
    paper_id=138,
    note=NOTE,
)
def rounds_with_full_window(seed: int) -> float:
    return _parallel(seed, window=STEPS, tol=1e-3)[2]["rounds"]


@claim(
    method="diffusion.paradigms",
    baseline="diffusion.ddim",
    statement=f"As tol goes to 0 the samples are DDIM's own: {SCALE}.",
    quantity="largest difference to DDIM's samples at tol=1e-300",
    threshold=1e-10,
    paper_id=138,
    aggregate="max",
)
def exact_at_zero_tolerance(seed: int) -> float:
    parallel, sequential, _ = _parallel(seed, window=20, tol=1e-300)
    return float((parallel - sequential).abs().max())


@claim(
    method="diffusion.paradigms",
    baseline="diffusion.ddim",
    statement=f"As tol goes to 0 there are at most as many rounds as steps: {SCALE}.",
    quantity="sequential rounds at tol=1e-300",
    threshold=100,
    paper_id=138,
    aggregate="max",
)
def rounds_at_zero_tolerance(seed: int) -> float:
    return _parallel(seed, window=20, tol=1e-300)[2]["rounds"]
