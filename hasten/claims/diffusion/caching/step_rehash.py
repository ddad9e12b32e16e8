"""Claims of Step Rehash."""

from __future__ import annotations

from functools import lru_cache

from hasten.claims.diffusion.caching.digits import SCALE, STEPS, _distance, _sample, plain
from hasten.core.claim import claim
from hasten.diffusion.caching.step_rehash import StepRehash

FOUND = "schedule found on other noise with threshold 0.98"


@lru_cache(maxsize=8)
def _run(seed: int) -> tuple[float, int]:
    """Change of the samples, and full passes, with a schedule from other noise."""
    cache = StepRehash(threshold=0.98)
    cache.fit(lambda: _sample(seed + 100, STEPS, cache))
    return _distance(_sample(seed, STEPS, cache), seed), cache.full


@claim(
    method="diffusion.step-rehash",
    baseline="all steps in full",
    statement=f"The deep part runs on 26 of the 50 steps at most, {FOUND}: {SCALE}.",
    quantity="full passes of 50 steps",
    threshold=26.0,
    paper_id=238,
)
def full_passes(seed: int) -> float:
    return _run(seed)[1]


@claim(
    method="diffusion.step-rehash",
    baseline="diffusion.ddim",
    statement=f"Samples change at most 0.9 times as much as by as many steps as there are full passes: {SCALE}.",
    quantity=f"RMS change of the samples, ratio to as many Euler steps as full passes; {FOUND}",
    threshold=0.9,
    paper_id=238,
    aggregate="mean",
    note="The paper skips steps of video models and reports the same quality. This small transformer's features are so "
    "alike from step to step (cosine above 0.99) that every other step is skipped, which is no better than leaving the "
    "step out, although the last blocks run on it.",
)
def change_at_equal_full_passes(seed: int) -> float:
    error, passes = _run(seed)
    return error / plain(seed, passes)
