"""Claims of DualFast."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from hasten.claims.diffusion.mixture_2d import DENOISER, POINTS, error
from hasten.core.claim import claim
from hasten.diffusion.base import sample
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.dualfast import DualFast, error_split
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.mixture import GaussianMixture, circle
from hasten.numerics.noise import FlowMatching
from hasten.problems.digits_diffusion import digits_denoiser
from hasten.problems.networks.dit import images

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


DIGITS = "8x8 digits by class, flow transformer of 6 blocks, uniform grid, 16 samples per seed"
DIGITS_NOTE = "c0 is the default, 0.5; on seed 10 the larger of 0.1, 0.3 and 0.6 did best, with sign=1."
LAW_NOTE = (
    "The exact denoiser is that of the 1797 training images, unconditional. The network generalises: it ends at digits "
    "that are none of them, so that its distance to that law is large at any number of steps. {more}"
)


@cache
def _digits(seed: int) -> tuple[Denoiser, Tensor, Tensor]:
    """Network under labels, start noise, and the samples of 200 DDIM steps from it."""
    generator = torch.Generator().manual_seed(seed)
    denoiser = digits_denoiser().given(torch.randint(0, 10, (16,), generator=generator))
    noise = denoiser.schedule.noise_scale * torch.randn(16, 1, 8, 8, generator=generator)
    return denoiser, noise, sample(denoiser, noise=noise, sampler=DDIM(grid="uniform"), steps=200)


@claim(
    method="diffusion.dualfast",
    baseline="diffusion.ddim",
    statement="With 5 to 8 evaluations the mean square distance to the samples of 200 steps is at most 0.85 times "
    f"DDIM's: {DIGITS}.",
    quantity="mean square distance to 200 DDIM steps, ratio to DDIM, worst of 5, 6, 7, 8 evaluations",
    threshold=0.85,
    paper_id=160,
    seeds=SEEDS,
    note=DIGITS_NOTE,
)
def digits_with_5_to_8_evaluations(seed: int) -> float:
    denoiser, noise, goal = _digits(seed)

    def distance(made: DDIM | DualFast, steps: int) -> float:
        return float((sample(denoiser, noise=noise, sampler=made, steps=steps) - goal).square().mean())

    pairs = ((distance(DualFast(grid="uniform"), n), distance(DDIM(grid="uniform"), n)) for n in (5, 6, 7, 8))
    return max(corrected / base for corrected, base in pairs)


def _digits_share(seed: int, steps: int) -> float:
    """Discretisation error over approximation error of the digits network, in mean squares."""
    network = digits_denoiser().fn
    schedule = FlowMatching()

    def flat(x: Tensor, t: Tensor) -> Tensor:
        return network(x.float().view(-1, 1, 8, 8), t.float()).flatten(1).to(x)

    law = GaussianMixture(images()[0].flatten(1), 0.0).denoiser(schedule)
    generator = torch.Generator().manual_seed(seed)
    noise = schedule.noise_scale * torch.randn(16, 64, dtype=torch.float64, generator=generator)
    split = error_split(DDIM(grid="uniform"), Denoiser(flat, schedule, "velocity"), law, noise, steps, max(steps, 60))
    return split.discretisation[-1] / split.approximation[-1]


@claim(
    method="diffusion.dualfast",
    baseline="approximation error",
    statement="On digits, with 5 DDIM steps the discretisation error is larger than the network's: uniform grid, 16 "
    "samples per seed.",
    quantity="discretisation error over approximation error, mean squares, 5 steps, 8x8 digits",
    relation=">=",
    threshold=1.0,
    paper_id=160,
    note=LAW_NOTE.format(more="On seed 10 the ratio was 0.45, on the grid uniform in sqrt t 0.97."),
)
def digits_discretisation_leads_with_5_steps(seed: int) -> float:
    return _digits_share(seed, 5)


@claim(
    method="diffusion.dualfast",
    baseline="approximation error",
    statement="On digits, with 200 DDIM steps the discretisation error is smaller than the network's: uniform grid, 16 "
    "samples per seed.",
    quantity="discretisation error over approximation error, mean squares, 200 steps, 8x8 digits",
    threshold=1.0,
    paper_id=160,
    seeds=(0,),
    note=LAW_NOTE.format(more="").strip(),
)
def digits_approximation_leads_with_200_steps(seed: int) -> float:
    return _digits_share(seed, 200)
