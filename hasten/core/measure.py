"""Measuring many claims at once, in processes of their own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context

from hasten.core import check
from hasten.core.claim import Claim, Outcome, claims
from hasten.core.run import brief


def measure(chosen: Sequence[Claim], jobs: int = 1) -> Iterator[tuple[Claim, Outcome | str]]:
    """Measure claims, `jobs` at a time; yields each with its outcome, or with what went wrong, as they end."""
    check.integer("jobs", jobs, 1)
    by_id = {made.id: made for made in chosen}
    with ProcessPoolExecutor(jobs, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(_measure, name): name for name in by_id}
        for future in as_completed(futures):
            made = by_id[futures[future]]
            try:
                yield made, future.result()
            except BrokenProcessPool:
                yield made, "its process died"


def _measure(name: str) -> Outcome | str:
    from hasten.core.engine.job import prepare

    prepare()
    (made,) = claims(name)
    try:
        return made.measure()
    except Exception as error:
        return brief(error)
