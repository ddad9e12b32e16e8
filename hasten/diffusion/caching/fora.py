"""FORA: on most steps the attention and feed-forward outputs of an earlier step are used again."""

from __future__ import annotations

from dataclasses import dataclass, field

from hasten.core.card import Card, Integer
from hasten.diffusion.caching.race import cache
from hasten.diffusion.caching.taylorseer import TaylorSeer

CARD = Card(
    name="fora",
    family="diffusion",
    title="FORA: Fast-Forward Caching in Diffusion Transformer Acceleration",
    authors="Selvaraju et al.",
    year=2024,
    arxiv="2407.01425",
    paper_id=221,
    summary="Runs the blocks on every few steps and uses their outputs again in between.",
    cost="About 1/interval of the blocks' work; one stored tensor per module.",
    when="As the baseline of caches, and where memory for more than one tensor per module is not there.",
    kinds=("sample",),
    needs=("blocks",),
    search_space={"interval": Integer(2, 6)},
    use="cache = hasten.diffusion.FORA({hyper})\n"
    'samples = hasten.diffusion.sample(transformer, (4, 1, 8, 8), "ddim", steps=20, cache=cache)',
)


@cache(CARD)
@dataclass(eq=False)
class FORA(TaylorSeer):
    """Static caching: attention and feed-forward outputs of the latest full pass, with this step's gates.

    The same as `TaylorSeer(order=0)`. The published code counts steps down to 0 and runs in full on the first one and
    on multiples of the interval; here the first two are full and then every interval-th, the same where the number of
    steps is two more than a multiple of the interval.

    Args:
        interval: steps from one full pass to the next; 1 changes nothing.
        model, blocks, modules: see `TaylorSeer`.

    Cost: about 1/interval of the blocks' work. Source: Selvaraju et al. (2024), arXiv 2407.01425.
    """

    interval: int = 3
    order: int = field(default=0, init=False)
    warmup: int = field(default=2, init=False)
    level: str = field(default="module", init=False)
