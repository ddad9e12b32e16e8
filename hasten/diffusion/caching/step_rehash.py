"""Step Rehash: steps whose deep features resemble those of the step before take them from there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card, Real
from hasten.core.errors import InputError
from hasten.diffusion.caching.attachment import state_of
from hasten.diffusion.caching.base import Cache
from hasten.diffusion.caching.features import Place, Stream
from hasten.diffusion.caching.race import cache

CARD = Card(
    name="step-rehash",
    family="diffusion",
    title="Fast and Memory-Efficient Video Diffusion Using Streamlined Inference",
    authors="Zhan, Wu, Gong, Meng, Kong, Yang, Yuan, Zhao, Niu & Wang",
    year=2024,
    arxiv="2411.01171",
    paper_id=238,
    summary="Skips the deep part of a network on steps whose features resemble those of the step before.",
    cost="The remaining blocks only on skipped steps; one stored tensor.",
    when="With little memory, and where steps differ in how much they change.",
    kinds=("sample",),
    needs=("blocks",),
    search_space={"threshold": Real(0.8, 0.999)},
    use="cache = hasten.diffusion.StepRehash({hyper})\n"
    'samples = hasten.diffusion.sample(transformer, (4, 1, 8, 8), "ddim", steps=20, cache=cache)',
)


@cache(CARD)
@dataclass(eq=False)
class StepRehash(Cache):
    """Reuse of the deep features of the step before, where adjacent steps are alike.

    The deep part is the first `depth` blocks, whose output is stored. Likeness is the cosine of two steps' stored
    features, the least one over the batch. With a schedule, its steps reuse; `fit` finds one. Without, a step reuses if
    the last two full passes were alike.

    Args:
        threshold: likeness from which on a step reuses, in [-1, 1]; above 1 changes nothing.
        depth: blocks in the deep part; all but the last quarter if None.
        longest: most steps in a row that reuse.
        schedule: indices of the steps that reuse.
        model, blocks: see `Cache`. The blocks must follow one another and return one tensor.

    Attributes:
        likeness: of every full pass to the full pass before, in the step's first stream, since the last reset.

    Cost: the remaining blocks only on steps that reuse; one stored tensor. Source: Zhan et al. (2024), arXiv
    2411.01171.

    Example:
        >>> cache = StepRehash(threshold=0.98)
        >>> cache.fit(lambda: sample(denoiser, (8, 1, 8, 8), "ddim", steps=20, cache=cache))
        >>> images = sample(denoiser, (64, 1, 8, 8), "ddim", steps=20, cache=cache)
    """

    threshold: float = 0.95
    depth: int | None = None
    longest: int = 1
    schedule: Sequence[int] | None = field(default=None, kw_only=True)
    likeness: list[float] = field(default_factory=list, init=False, repr=False)

    def __post_init__(self) -> None:
        check.real("threshold", self.threshold, -1.0)
        check.integer("longest", self.longest, 1)
        if self.depth is not None:
            check.integer("depth", self.depth, 1)
        if self.schedule is not None:
            self.schedule = tuple(check.integer("schedule", step, 1) for step in self.schedule)
        super().__post_init__()

    def places(self, blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        depth = max(1, 3 * len(blocks) // 4) if self.depth is None else self.depth
        if depth > len(blocks):
            raise InputError(f"depth must be at most {len(blocks)}, the number of blocks; got {depth}")
        deep = dict(list(blocks.items())[:depth])
        self._last = (list(deep)[-1], 0)
        return deep

    def due(self, step: int, stream: Stream) -> bool:
        if self.schedule is not None:
            return step not in self.schedule
        return stream.skipped >= self.longest or self._alike.get(self._index, -1.0) < self.threshold

    def answer(self, place: Place, run: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        if not self.is_full:
            return self.forecast(place) if place == self._last else state_of(args, kwargs)
        output = run()
        if place != self._last:
            return output
        if not isinstance(output, Tensor):
            raise InputError(f"StepRehash needs blocks that return one tensor, got {type(output).__name__}")
        before = self.forecast(place)
        if before is not None:
            alike = float((_unit(before) * _unit(output)).sum(1).min())
            self._alike[self._index] = alike
            if self._index == 0:
                self.likeness.append(alike)
        self.refresh(place, output, 0)
        return output

    def calls_for(self, passes: int) -> int:
        reused = set(self.schedule or ())
        calls = 0
        while passes > 0 or calls in reused:
            passes -= calls not in reused
            calls += 1
        return calls

    def fit(self, run: Callable[[], Any]) -> tuple[int, ...]:
        """Find the schedule from one chain in full.

        Args:
            run: samples with this cache attached, on the grid that is going to be used.

        Returns:
            The steps that will reuse: those alike to the step before, at most `longest` in a row.
        """
        self.schedule = ()
        run()
        chosen: list[int] = []
        for step, alike in enumerate(self.likeness, 1):
            row = [step - back for back in range(1, self.longest + 1)]
            if alike >= self.threshold and not all(earlier in chosen for earlier in row):
                chosen.append(step)
        self.schedule = tuple(chosen)
        return self.schedule

    def reset(self) -> None:
        self.likeness = []
        super().reset()

    def _restart(self) -> None:
        super()._restart()
        self._alike: dict[int, float] = {}


def _unit(x: Tensor) -> Tensor:
    flat = x.flatten(1).double()
    return flat / flat.norm(dim=1, keepdim=True).clamp(min=1e-30)
