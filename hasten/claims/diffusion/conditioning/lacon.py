"""Claims of LaCon."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from sklearn.svm import SVC
from torch import Tensor
from torch.nn import functional as F

from hasten.core.claim import claim
from hasten.diffusion.base import sample
from hasten.diffusion.conditioning.lacon import ConditionAligner, LateConstraint, fit_aligner
from hasten.numerics.denoiser import Denoiser
from hasten.problems.digits_diffusion import digits_denoiser
from hasten.problems.networks.dit import images

KNOWN = 1400
COUNT = 100
BLOCKS = ("blocks.1", "blocks.3", "blocks.5")
SCALE = "class-conditional flow on 8x8 digits, maps of 4x4 mean intensities of digits that the aligner never saw"
NOTE = (
    "The paper's own figures are FID and map similarity of Stable Diffusion on COCO. scale=0.5 was chosen among 0.3, "
    "0.5, 1 and 2 on another seed; the authors' 2 draws as near to the map, but loses six of a hundred classes."
)


class Bench(NamedTuple):
    """Digits in a random order, their maps, an aligner and a judge that learnt from the first `KNOWN`."""

    denoiser: Denoiser
    labels: Tensor
    maps: Tensor
    aligner: ConditionAligner
    judge: SVC


@cache
def _bench() -> Bench:
    pixels, labels = images()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    pixels, labels = pixels[order], labels[order]
    maps, denoiser = F.avg_pool2d(pixels, 2), digits_denoiser()
    judge = SVC(gamma=0.02).fit(pixels[:KNOWN].flatten(1).numpy(), labels[:KNOWN].numpy())  # type: ignore[arg-type]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        generator = torch.Generator().manual_seed(0)
        aligner = fit_aligner(denoiser, BLOCKS, pixels[:KNOWN], maps[:KNOWN], steps=150, generator=generator)
    return Bench(denoiser, labels, maps, aligner, judge)


@cache
def _drawn(seed: int, guided: bool, rescale: bool = True) -> tuple[float, float]:
    """Mean square error of the samples' maps, and the share of samples of their class."""
    here = _bench()
    generator = torch.Generator().manual_seed(seed)
    index = KNOWN + torch.randperm(len(here.labels) - KNOWN, generator=generator)[:COUNT]
    labels, maps = here.labels[index], here.maps[index]
    guidance = LateConstraint(here.aligner, maps, BLOCKS, scale=0.5, rescale=rescale) if guided else None
    drawn = sample(
        here.denoiser.given(labels),
        (COUNT, 1, 8, 8),
        "ddim",
        25,
        grid="uniform",
        guidance=guidance,
        generator=generator,
    )
    error = float((F.avg_pool2d(drawn, 2) - maps).square().mean())
    return error, float(here.judge.score(drawn.flatten(1).numpy(), labels.numpy()))


@claim(
    method="diffusion.lacon",
    baseline="diffusion.ddim",
    statement=f"The samples' maps are off by at most 0.5 times the free samples' error: {SCALE}, 25 steps, 100 images.",
    quantity="mean square error of the 4x4 map, scale=0.5, truncation=0.5, ratio to DDIM without constraint",
    threshold=0.5,
    paper_id=395,
    note=NOTE,
)
def condition_error(seed: int) -> float:
    return _drawn(seed, True)[0] / _drawn(seed, False)[0]


@claim(
    method="diffusion.lacon",
    baseline="diffusion.ddim",
    statement=f"At most 5 of 100 samples lose their class by the constraint: {SCALE}, 25 steps.",
    quantity="percentage points of class accuracy lost, judged by a support vector machine on clean digits",
    threshold=5.0,
    paper_id=395,
    note=NOTE,
)
def classes_lost(seed: int) -> float:
    return 100.0 * (_drawn(seed, False)[1] - _drawn(seed, True)[1])


@claim(
    method="diffusion.lacon",
    baseline="diffusion.lacon",
    statement=f"Without the rescaling of the gradient the same scale follows the map worse: {SCALE}, 25 steps.",
    quantity="mean square error of the 4x4 map with rescale=False, ratio to rescale=True",
    relation=">=",
    threshold=1.0,
    paper_id=395,
    note="The gradient's own size depends on the aligner and the time; a scale that fits it was not searched for.",
)
def error_without_rescaling(seed: int) -> float:
    return _drawn(seed, True, rescale=False)[0] / _drawn(seed, True)[0]
