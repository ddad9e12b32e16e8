"""Claims of DualFast."""

from __future__ import annotations

import torch

from hasten.claims.diffusion.mixture_2d import DENOISER, POINTS, error
from hasten.core.claim import claim
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.dualfast import DualFast, error_split
from hasten.numerics.mixture import circle

SEEDS = (0, 1, 2, 3, 4)
SCALE = "five-component mixture in 2-d, exact score, VP, grid uniform in sqrt t, 256 points"
NOTE = (
    "The paper corrects the error of trained networks, which grows towards clean data. With an exact score only the "
    "error of the steps is there to be reduced; that part is measured here. That the correction moves away from the "
    "kept prediction (sign=1) was chosen after a look at both signs on seed 10; c0 is the default."
)
SPLIT_NOTE = (
    "The network is the exact score of a mixture that is a little too wide (component variance 0.2 instead of 0.15), "
    "a model error of known size. The paper measures the split on trained networks."
)


def _ratio(seed: int, steps: int) -> float:
    return (error(seed, DualFast(), steps) / error(seed, "ddim", steps, grid="quadratic")) ** 2


@claim(
    method="diffusion.dualfast",
    baseline="diffusion.ddim",
    statement=f"With 5 evaluations the mean square error is at most 0.85 times DDIM's: {SCALE}.",
    quantity="mean square error, ratio to DDIM at 5 evaluations",
    threshold=0.85,
    paper_id=160,
    seeds=SEEDS,
    note=NOTE,
)
def error_at_5_evaluations(seed: int) -> float:
    return _ratio(seed, 5)


@claim(
    method="diffusion.dualfast",
    baseline="diffusion.ddim",
    statement=f"With 8 evaluations the mean square error is at most 0.85 times DDIM's: {SCALE}.",
    quantity="mean square error, ratio to DDIM at 8 evaluations",
    threshold=0.85,
    paper_id=160,
    seeds=SEEDS,
    note=NOTE,
)
def error_at_8_evaluations(seed: int) -> float:
    return _ratio(seed, 8)


def _share(seed: int, steps: int) -> float:
    noise = torch.randn(POINTS, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    network = circle(variance=0.2).denoiser(DENOISER.schedule)
    split = error_split(DDIM(), network, DENOISER, noise, steps)
    return split.discretisation[-1] / split.approximation[-1]


@claim(
    method="diffusion.dualfast",
    baseline="approximation error",
    statement="With 5 DDIM steps the discretisation error is larger than the network's: mixture in 2-d, VP, network of "
    "a mixture that is a little too wide.",
    quantity="discretisation error over approximation error, mean squares, 5 steps",
    relation=">=",
    threshold=1.0,
    paper_id=160,
    note=SPLIT_NOTE,
)
def discretisation_leads_with_5_steps(seed: int) -> float:
    return _share(seed, 5)


@claim(
    method="diffusion.dualfast",
    baseline="approximation error",
    statement="With 200 DDIM steps the discretisation error is smaller than the network's: mixture in 2-d, VP, network "
    "of a mixture that is a little too wide.",
    quantity="discretisation error over approximation error, mean squares, 200 steps",
    threshold=1.0,
    paper_id=160,
    note=SPLIT_NOTE,
)
def approximation_leads_with_200_steps(seed: int) -> float:
    return _share(seed, 200)
