"""Claims of Confidence-gated Taylor."""

from __future__ import annotations

from hasten.claims.diffusion.caching.digits import SCALE, Drawn, cached
from hasten.core.claim import claim

NOTE = (
    "The paper's own figures are speed-ups of 3.17 on FLUX, 2.36 on DiT and 4.14 on Wan Video with little loss, at "
    "less memory than forecasts of all modules. TaylorSeer and FORA make 18 full passes with interval 3."
)


def _gated(seed: int) -> Drawn:
    return cached(seed, "gated-taylor", order=1, threshold=0.02)


@claim(
    method="diffusion.gated-taylor",
    baseline="all steps in full",
    statement=f"With threshold 0.02 at most 20 of the 50 steps are full: {SCALE}.",
    quantity="full passes of 50 steps, order 1, threshold 0.02",
    threshold=20.0,
    paper_id=225,
    aggregate="max",
)
def full_passes(seed: int) -> float:
    return _gated(seed).passes


@claim(
    method="diffusion.gated-taylor",
    baseline="diffusion.taylorseer",
    statement=f"It changes the samples at most 1.4 times as much as TaylorSeer with as many passes: {SCALE}.",
    quantity="RMS change of the samples, ratio to TaylorSeer of order 1 with interval 3, threshold 0.02",
    threshold=1.4,
    paper_id=225,
    aggregate="mean",
    note=NOTE,
)
def change_against_taylorseer(seed: int) -> float:
    return _gated(seed).error / cached(seed, "taylorseer", interval=3, order=1).error


@claim(
    method="diffusion.gated-taylor",
    baseline="diffusion.fora",
    statement=f"It changes the samples at most 0.45 times as much as FORA with as many passes: {SCALE}.",
    quantity="RMS change of the samples, ratio to FORA with interval 3, threshold 0.02",
    threshold=0.45,
    paper_id=225,
    aggregate="mean",
    note=NOTE,
)
def change_against_fora(seed: int) -> float:
    return _gated(seed).error / cached(seed, "fora", interval=3).error


@claim(
    method="diffusion.gated-taylor",
    baseline="diffusion.taylorseer",
    statement=f"It stores at most 0.2 times as much as TaylorSeer of the same order: {SCALE}.",
    quantity="numbers stored, ratio to TaylorSeer, order 1",
    threshold=0.2,
    paper_id=225,
    seeds=(0,),
)
def memory(seed: int) -> float:
    return _gated(seed).stored / cached(seed, "taylorseer", interval=3, order=1).stored
