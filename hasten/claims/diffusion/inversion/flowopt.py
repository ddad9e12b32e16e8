"""Claims of FlowOpt."""

from __future__ import annotations

from itertools import pairwise

import torch

from hasten.claims.diffusion.inversion.bench import data, round_trip
from hasten.core.claim import claim
from hasten.diffusion.inversion.flowopt import FlowOpt
from hasten.numerics.mixture import circle
from hasten.numerics.noise import FlowMatching
from hasten.numerics.reference import rms
from hasten.numerics.time_grid import make

DENOISER = circle().denoiser(FlowMatching())
STEPS = 15
SCALE = "draws of the five-component mixture in 2-d, exact velocity, straight paths, Euler with 15 steps, 256 points"
NOTE = "The paper's own figures are reconstructions and edits of images with FLUX and Stable Diffusion 3."


def _misses(seed: int, eta: float, iters: int = 40) -> list[float]:
    """RMS reconstruction error at the start and after every iteration."""
    flowopt = FlowOpt(eta=eta, iters=iters, steps=STEPS)
    return [rms(x, data(seed)) for x in flowopt.edit(DENOISER, DENOISER, data(seed))]


@claim(
    method="diffusion.flowopt",
    baseline="diffusion.uni-inv",
    statement=f"With eta=0.05, 40 iterations leave at most 0.2 times the start's reconstruction error: {SCALE}.",
    quantity="RMS reconstruction error, ratio to UniInv",
    threshold=0.2,
    paper_id=83,
    note=NOTE,
)
def reconstruction(seed: int) -> float:
    misses = _misses(seed, 0.05)
    return misses[40] / misses[0]


@claim(
    method="diffusion.flowopt",
    baseline="diffusion.uni-inv",
    statement=f"With eta=0.05 the reconstruction error falls from 0 to 5, 10, 20 and 40 iterations: {SCALE}.",
    quantity="largest ratio of RMS errors at neighbouring checkpoints",
    threshold=1.0,
    paper_id=83,
    aggregate="max",
    note=NOTE,
)
def monotone(seed: int) -> float:
    misses = _misses(seed, 0.05)
    return max(misses[b] / misses[a] for a, b in ((0, 5), (5, 10), (10, 20), (20, 40)))


@claim(
    method="diffusion.flowopt",
    baseline="diffusion.uni-inv",
    statement=f"Too large a step does not converge: at eta=0.5 40 iterations end above the start: {SCALE}.",
    quantity="RMS reconstruction error at eta=0.5, ratio to UniInv",
    relation=">=",
    threshold=1.0,
    paper_id=83,
    aggregate="min",
    note=NOTE,
)
def large_steps_diverge(seed: int) -> float:
    misses = _misses(seed, 0.5)
    return misses[40] / misses[0]


@claim(
    method="diffusion.flowopt",
    baseline="analysis",
    statement=f"The estimated step size lies between 0.05, which converges, and 0.5, which does not: {SCALE}.",
    quantity="estimated eta",
    relation="in",
    threshold=(0.05, 0.5),
    paper_id=83,
    note=NOTE,
)
def estimated_step(seed: int) -> float:
    generator = torch.Generator().manual_seed(seed)
    return FlowOpt(steps=STEPS).estimate_eta(DENOISER, data(seed), generator)


@claim(
    method="diffusion.uni-inv",
    baseline="Euler inversion",
    statement=f"UniInv reconstructs with at most 0.15 times the error of Euler's rule run backwards: {SCALE}.",
    quantity="RMS reconstruction error, ratio to Euler inversion",
    threshold=0.15,
    note=NOTE,
)
def uni_inv_against_euler(seed: int) -> float:
    x0 = data(seed)
    x = x0
    for s, t in pairwise(make(DENOISER.schedule, STEPS, "uniform")[::-1]):
        x = x + (t - s) * DENOISER.velocity(x, s)
    euler = rms(FlowOpt(steps=STEPS).generated(DENOISER, x), x0)
    return round_trip(seed, DENOISER, "uni-inv", STEPS, "uniform") / euler
