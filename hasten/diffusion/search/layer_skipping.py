"""AutoDiffusion's second stage: which blocks of the network to leave out at which step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.errors import DivergedError, InputError
from hasten.core.kinds.choose import Choice, Choosing
from hasten.core.registry import entry
from hasten.diffusion.base import Sampler, sample
from hasten.diffusion.caching.attachment import find_blocks, state_of
from hasten.diffusion.caching.base import Cache, cached_network
from hasten.diffusion.caching.features import Place, Stream
from hasten.diffusion.search.autodiffusion import EvolutionSearch, searched, searching
from hasten.numerics.reference import rms


@dataclass(eq=False)
class LayerSkip(Cache):
    """Leaves out blocks of a network, others at every step: their state passes by unchanged.

    Used like a cache, with which it shares the attachment, the steps and the streams; it stores nothing. A pass is full
    if no block is left out of it.

    Args:
        skipped: for every step, the indices of the blocks that are left out; nothing is after the last one of them.
        model, blocks: see `Cache`.

    Attributes:
        runs: blocks that were run since the last reset.

    Example:
        >>> samples = sample(denoiser, (16, 1, 8, 8), "ddim", steps=2, cache=LayerSkip([[0, 3], [4]]))

    Source: Li et al. (2023), arXiv 2309.10438.
    """

    stores: ClassVar[bool] = False
    skipped: Sequence[Sequence[int]] = ()

    def __post_init__(self) -> None:
        self.skipped = tuple(tuple(check.integer("skipped", block, 0) for block in step) for step in self.skipped)
        super().__post_init__()

    def places(self, blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        highest = max((block for step in self.skipped for block in step), default=0)
        if highest >= len(blocks):
            raise InputError(f"skipped names block {highest}, but the network has {len(blocks)} (from 0)")
        self._numbers = {path: number for number, path in enumerate(blocks)}
        return dict(blocks)

    def reset(self) -> None:
        super().reset()
        self.runs = 0

    def due(self, step: int, stream: Stream) -> bool:
        return not self._out(step)

    def answer(self, place: Place, run: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        if self._numbers[place[0]] in self._out(self.step):
            return state_of(args, kwargs)
        self.runs += 1
        return run()

    def calls_for(self, passes: int) -> int:
        return passes

    def _out(self, step: int) -> Sequence[int]:
        return self.skipped[step] if step < len(self.skipped) else ()


def search_layers(
    denoiser: Any,
    grid: Sequence[float],
    skip: float = 0.2,
    *,
    noise: Tensor | None = None,
    sampler: str | Sampler = "ddim",
    score: Callable[[Tensor], float] | None = None,
    method: str | EvolutionSearch = "autodiffusion",
    scores: int = 170,
    model: nn.Module | None = None,
    blocks: str | Sequence[str] | None = None,
    generator: torch.Generator | None = None,
    **hyper: Any,
) -> LayerSkip:
    """Search the blocks that are left out at each step of a grid; hand the result to `sample` as its `cache`.

    The second stage of AutoDiffusion: `search_grid` finds the times first.

    Args:
        denoiser: the network with its schedule.
        grid: the times between which the steps go.
        skip: share of all block calls to leave out, in (0, 1).
        noise: start noise of the samples that are scored, at time T.
        sampler: the sampler that will be used, one with one evaluation per step.
        score: number for a batch of samples, smaller is better, e.g. a Frechet distance to data. If not given, the RMS
            distance to the samples of the whole network.
        method: name of a search, or one.
        scores: choices to try.
        model, blocks: see `Cache`.
        generator: source of the search's randomness; torch's global one if not given.
        hyper: the search's own arguments, e.g. `population=20`.

    Example:
        >>> grid = search_grid(denoiser, 10, noise=noise)
        >>> layers = search_layers(denoiser, grid, skip=0.2, noise=noise)
        >>> images = sample(denoiser, (16, 1, 8, 8), sampler="ddim", grid=grid, cache=layers)
    """
    check.real("skip", skip, 0.0, 1.0, open_low=True, open_high=True)
    check.integer("scores", scores, 1)
    if noise is None:
        raise InputError("give noise, the start of the samples that are scored, e.g. torch.randn(256, 3, 32, 32)")
    start = noise
    named = isinstance(sampler, str)
    found = entry(sampler if "." in sampler else f"diffusion.{sampler}").build() if named else sampler
    if found.evaluations != 1:
        raise InputError(f"{found.card.name} makes {found.evaluations} evaluations per step; take one that makes 1")
    solver = found.changed(grid=tuple(grid))
    depth, steps = len(find_blocks(cached_network(denoiser, LayerSkip(model=model)), blocks)), len(grid) - 1
    left_out = round(skip * depth * steps)
    if not 0 < left_out < depth * steps:
        raise InputError(f"skip={skip:g} of {depth} blocks in {steps} steps leaves out {left_out} of {depth * steps}")

    def made(choice: Choice) -> LayerSkip:
        table: list[list[int]] = [[] for _ in range(steps)]
        for pair in choice:
            table[pair // depth].append(pair % depth)
        return LayerSkip(table, model=model, blocks=blocks)

    judge = score or partial(rms, reference=sample(denoiser, noise=start, sampler=solver))

    def judged(choice: Choice) -> float:
        try:
            return judge(sample(denoiser, noise=start, sampler=solver, cache=made(choice)))
        except DivergedError:
            return math.inf

    problem = Choosing(judged, left_out, depth * steps)
    return made(searched(searching(method, hyper), problem, scores, generator))
