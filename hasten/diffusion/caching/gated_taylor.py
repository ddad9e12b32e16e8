"""Confidence-gated Taylor: the first block's forecast tells whether the last block's can be trusted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.diffusion.caching.base import Cache
from hasten.diffusion.caching.features import Place, Stream
from hasten.diffusion.caching.race import cache

CARD = Card(
    name="gated-taylor",
    family="diffusion",
    title="Forecasting When to Forecast: Accelerating Diffusion Models with Confidence-Gated Taylor",
    authors="Guan et al.",
    year=2025,
    arxiv="2508.02240",
    paper_id=225,
    summary="Runs the first block at every step, and forecasts the last one's output where the first one's was right.",
    cost="One block per skipped step; order + 1 tensors for each of two blocks, whatever the depth.",
    when="Where TaylorSeer's tensors do not fit into memory, or no fixed interval suits all of the chain.",
    kinds=("sample",),
    needs=("blocks",),
    search_space={"threshold": LogReal(0.005, 0.2), "order": Choice(1, 2)},
    use="cache = hasten.diffusion.ConfidenceGatedTaylor({hyper})\n"
    'samples = hasten.diffusion.sample(transformer, (4, 1, 8, 8), "ddim", steps=20, cache=cache)',
)


@cache(CARD)
@dataclass(eq=False)
class ConfidenceGatedTaylor(Cache):
    """Forecasts the output of the last block whenever the forecast of the first block's proves right.

    Every step runs the input embedding and the first block. If `mean|h_1 forecast - h_1| / mean|h_1|` is below the
    threshold, the forecast of the last block's output goes to the final layer and the other blocks are skipped;
    otherwise they run, and the factors of both blocks are refreshed as in `TaylorSeer`. Factors are refreshed at full
    passes only. For networks whose blocks follow one another, with nothing in between.

    Args:
        order: highest difference, limited by the number of full passes so far.
        threshold: relative error of the first block's forecast up to which it is trusted; 0 changes nothing.
        warmup: full passes at the beginning.
        max_skip: forecasts after which a pass is full.
        model, blocks: see `Cache`.

    Cost: one block per skipped step. Source: Guan et al. (2025), arXiv 2508.02240.
    """

    order: int = 1
    threshold: float = 0.05
    warmup: int = 3
    max_skip: int = 6

    def __post_init__(self) -> None:
        super().__post_init__()
        check.integer("order", self.order, 0)
        check.nonnegative("threshold", self.threshold)
        check.integer("warmup", self.warmup, 1)
        check.integer("max_skip", self.max_skip, 0)

    def places(self, blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        if len(blocks) < 2:
            raise InputError("a gate needs a network of at least two blocks, of which it runs the first one always")
        self._first, self._last = ((path, 0) for path in (next(iter(blocks)), list(blocks)[-1]))
        return dict(blocks)

    def due(self, step: int, stream: Stream) -> bool:
        return step < self.warmup or stream.skipped >= self.max_skip

    def answer(self, place: Place, run: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        if place == self._first:
            return self._gate(run())
        if self.is_full:
            output = run()
            if place == self._last:
                self.refresh(place, output, self.order)
            return output
        return self.forecast(self._last)

    def calls_for(self, passes: int) -> int:
        """A guess, since the chain decides: every second pass after the first ones is trusted."""
        return passes + max(0, passes - self.warmup)

    def _gate(self, output: Any) -> Any:
        """Decide about the present pass by the first block's output."""
        if not self.is_full and error(self.forecast(self._first), output) >= self.threshold:
            self.run_in_full()
        if self.is_full:
            self.refresh(self._first, output, self.order)
        return output


def error(forecast: Any, output: Any) -> float:
    """`mean|forecast - output| / mean|output|`, over all tensors of an output."""
    pairs = [(forecast, output)] if isinstance(output, Tensor) else list(zip(forecast, output, strict=True))
    gap = sum(float((a - b).abs().sum()) for a, b in pairs if b is not None)
    size = sum(float(b.abs().sum()) for _, b in pairs if b is not None)
    return gap / max(size, 1e-30)
