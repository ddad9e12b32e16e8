"""Claims of FORA."""

from __future__ import annotations

from hasten.claims.diffusion.caching.digits import SCALE, cached, plain
from hasten.core.claim import claim

NOTE = (
    "The paper reports several-fold speed-ups of DiT and PixArt at a small change of FID. Here samples are compared "
    "with those of the same chain in full, and with what a shorter chain makes of about as many passes."
)


@claim(
    method="diffusion.fora",
    baseline="all steps in full",
    statement=f"With interval 3 the blocks run on 18 of the 50 steps: {SCALE}.",
    quantity="full passes of 50 steps, interval 3",
    relation="in",
    threshold=(18.0, 18.0),
    paper_id=221,
    seeds=(0,),
)
def passes_with_interval_3(seed: int) -> float:
    return cached(seed, "fora", interval=3).passes


@claim(
    method="diffusion.fora",
    baseline="diffusion.ddim",
    statement=f"With interval 3 the samples change at most 0.9 times as much as by taking 17 steps: {SCALE}.",
    quantity="RMS change of the samples, ratio to 17 Euler steps",
    threshold=0.9,
    paper_id=221,
    aggregate="mean",
    note=NOTE,
)
def change_with_interval_3(seed: int) -> float:
    return cached(seed, "fora", interval=3).error / plain(seed, 17)


@claim(
    method="diffusion.fora",
    baseline="diffusion.ddim",
    statement=f"With interval 5 the samples change at most 0.9 times as much as by taking 10 steps: {SCALE}.",
    quantity="RMS change of the samples, ratio to 10 Euler steps",
    threshold=0.9,
    paper_id=221,
    aggregate="mean",
    note=NOTE,
)
def change_with_interval_5(seed: int) -> float:
    return cached(seed, "fora", interval=5).error / plain(seed, 10)
