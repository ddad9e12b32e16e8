"""TaylorSeer: on most steps the attention and feed-forward outputs are forecast instead of computed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card, Integer
from hasten.core.errors import InputError
from hasten.diffusion.caching.attachment import find_modules, state_of
from hasten.diffusion.caching.base import Cache
from hasten.diffusion.caching.features import Place, Stream
from hasten.diffusion.caching.race import cache

CARD = Card(
    name="taylorseer",
    family="diffusion",
    title="From Reusing to Forecasting: Accelerating Diffusion Models with TaylorSeers",
    authors="Liu et al.",
    year=2025,
    arxiv="2503.06923",
    paper_id=165,
    summary="Runs the blocks on every few steps and forecasts their outputs in between from finite differences.",
    cost="About 1/interval of the blocks' work; order + 1 stored tensors per module.",
    when="With transformers and many steps, where a network evaluation is dear and memory is not.",
    kinds=("sample",),
    needs=("blocks",),
    search_space={"interval": Integer(2, 6), "order": Integer(0, 3)},
    use="cache = hasten.diffusion.TaylorSeer({hyper})\n"
    'samples = hasten.diffusion.sample(transformer, (4, 1, 8, 8), "ddim", steps=20, cache=cache)',
)


@cache(CARD)
@dataclass(eq=False)
class TaylorSeer(Cache):
    """Forecasts of a network's features from finite differences over its latest full passes.

    A full pass at step k, `gap` steps after the one before, makes the factors `F_0' = feature`,
    `F_{i+1}' = (F_i' - F_i)/gap`. A forecast x steps later takes `sum_i F_i x^i/i!` for the feature. The first `warmup`
    steps are full, and then every step after `interval - 1` forecasts. Everything outside the features (embeddings,
    modulation, residuals, the final layer) is computed at every step.

    Args:
        interval: steps from one full pass to the next; 1 changes nothing.
        order: highest difference, limited by the number of full passes so far. 0 reuses features as they are.
        warmup: full passes at the beginning.
        level: what is stored. `module`: the output of every attention and feed-forward module, before its gate.
            `block`: the change that each block makes. `last`: the output of the last block, in one tensor; for networks
            whose blocks follow one another, with nothing in between.
        modules: paths of the modules inside a block, for level `module`; `attn`, `attn1`, `attn2`, `mlp`, `ff` and
            `ff_context` if not given.
        model, blocks: see `Cache`.

    Cost: about 1/interval of the blocks' work. Source: Liu et al. (2025), arXiv 2503.06923.
    """

    interval: int = 4
    order: int = 2
    warmup: int = 2
    level: str = "module"
    modules: str | Sequence[str] | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        check.integer("interval", self.interval, 1)
        check.integer("order", self.order, 0)
        check.integer("warmup", self.warmup, 1)
        check.one_of("level", self.level, ("module", "block", "last"))
        if self.modules is not None and self.level != "module":
            raise InputError(f"modules names what level='module' stores; level={self.level!r} stores blocks")

    def places(self, blocks: Mapping[str, nn.Module]) -> dict[str, nn.Module]:
        self._last = (list(blocks)[-1], 0)
        return find_modules(blocks, self.modules) if self.level == "module" else dict(blocks)

    def due(self, step: int, stream: Stream) -> bool:
        return step < self.warmup or stream.skipped >= self.interval - 1

    def answer(self, place: Place, run: Callable[[], Any], args: Any, kwargs: Any) -> Any:
        if self.level == "block":
            return self._change(place, run, state_of(args, kwargs))
        if not self.is_full:
            feature = self.forecast(self._last if self.level == "last" else place)
            return run() if feature is None else feature
        output = run()
        if self.level == "module" or place == self._last:
            self.refresh(place, output, self.order)
        return output

    def calls_for(self, passes: int) -> int:
        begun = min(passes, self.warmup)
        return begun + self.interval * (passes - begun) + (self.interval - 1 if passes >= self.warmup else 0)

    def _change(self, place: Place, run: Callable[[], Any], state: Tensor) -> Any:
        change = None if self.is_full else self.forecast(place)
        if change is not None:
            return state + change
        output = run()
        if not isinstance(output, Tensor) or output.shape != state.shape:
            raise InputError("level='block' needs blocks that return a tensor like the one they get; take 'module'")
        if self.is_full:
            self.refresh(place, output - state, self.order)
        return output
