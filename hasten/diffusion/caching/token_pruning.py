"""FastVAR: next-scale models run their last, large scales on the busy tokens only, the others keep what was known."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.registry import register
from hasten.diffusion.caching.attachment import Forward, check_network, find_blocks, find_modules, replaced

Score = Callable[[Tensor], Tensor]

CARD = Card(
    name="cached-token-pruning",
    family="diffusion",
    title="FastVAR: Linear Visual Autoregressive Modeling via Cached Token Pruning",
    authors="Guo et al.",
    year=2025,
    arxiv="2503.23367",
    paper_id=175,
    summary="Drops the smooth tokens of the largest scales and fills them in from the scale before.",
    cost="The blocks' work on a pruned scale falls by the ratio; one stored map per module.",
    when="For next-scale image models, whose last scales hold nearly all tokens.",
    kinds=("sample",),
    needs=("scales",),
    use=(
        "from hasten.problems.networks.var import TinyVAR\n"
        "model, labels = TinyVAR(), torch.arange(4)\n"
        "pruning = hasten.diffusion.CachedTokenPruning(dict([(16, 0.75)]), keep_first_layers=1)\n"
        "with pruning.attached(model):\n"
        "    images = model.generate(labels)"
    ),
)


@dataclass
class Count:
    """Tokens that modules were called with.

    Attributes:
        run: tokens that they computed.
        full: tokens that they would have computed without pruning.
    """

    run: int = 0
    full: int = 0

    @property
    def share(self) -> float:
        """The part that was computed."""
        return self.run / self.full if self.full else math.nan


@register(CARD)
@dataclass(frozen=True, eq=False)
class CachedTokenPruning:
    """Cached token pruning for next-scale models.

    On a scale in `ratios`, the modules of later blocks get only the tokens with the highest scores
    `|x_i - mean_j x_j|^2`, the far ones from the average token; the output of the others is this module's output on
    the latest scale that ran in full, resized. Smaller scales run in full and are stored.

    It wraps the forward of the modules, whose first argument must be the tokens (batch, side * side, features) of one
    scale and whose result must be such tokens. The published code scores tokens before the norm and stores outputs
    after the gate: so it is here where the modules contain those.

    Args:
        ratios: share of tokens to drop, in [0, 1), by side of the token map; published are {48: 0.5, 64: 0.75} for HART
            and {32: 0.4, 40: 0.5} for Infinity. A ratio of 0 changes nothing.
        keep_first_layers: blocks at the beginning that always run in full.
        score: `mse_to_mean` as above, or a function of tokens (batch, tokens, features) that gives (batch, tokens).
        blocks, modules: names of the lists of blocks and of the modules inside a block; the usual names of attention
            and feed-forward modules if not given.
        per_token: names of further keyword arguments of the modules with a row per token, shape (batch or 1, tokens,
            ...), e.g. positions, of which the dropped rows are cut.

    Cost: the blocks' work on a pruned scale falls by the ratio; one stored map per module.
    Source: Guo et al. (2025), arXiv 2503.23367.

    Example:
        >>> with CachedTokenPruning({16: 0.75}, keep_first_layers=1).attached(model) as count:
        ...     images = model.generate(labels)
        >>> count.share
        0.58
    """

    ratios: Mapping[int, float] = field(default_factory=lambda: {48: 0.5, 64: 0.75})
    keep_first_layers: int = 3
    score: str | Score = "mse_to_mean"
    blocks: str | Sequence[str] | None = None
    modules: str | Sequence[str] | None = None
    per_token: Sequence[str] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.ratios, Mapping) or not self.ratios:
            raise InputError(f"ratios must map sides of token maps to shares, as in {{64: 0.75}}; got {self.ratios!r}")
        for side, ratio in self.ratios.items():
            check.integer("ratios: a side", side, 1)
            check.fraction(f"ratios: the share of side {side}", ratio)
        check.integer("keep_first_layers", self.keep_first_layers, 0)
        if not callable(self.score):
            check.one_of("score", self.score, ("mse_to_mean",))

    @contextmanager
    def attached(self, model: nn.Module) -> Iterator[Count]:
        """Prune a model's tokens for the length of a `with` block; afterwards the model is as before.

        Raises:
            InputError: the model is no module, is compiled, has no such blocks, or has a cache already; inside the
                block: a token map is not square, or the first scale of all is to be pruned.
        """
        blocks = find_blocks(check_network(model), self.blocks)
        modules = find_modules(blocks, self.modules)
        first = tuple(f"{path}." for path in list(blocks)[: self.keep_first_layers])
        count, stored = Count(), dict[str, Tensor]()

        def visit(path: str, forward: Forward, args: Any, kwargs: Any) -> Tensor:
            x = _tokens(path, args)
            side, tokens = _side(path, x), x.shape[1]
            kept = tokens - int(tokens * self.ratios.get(side, 0.0))
            count.full += tokens
            if kept == tokens or path.startswith(first):
                count.run += tokens
                stored[path] = _checked(path, forward(*args, **kwargs), x)
                return stored[path]
            count.run += kept
            base = stored.get(path)
            if base is None or base.shape[0] != len(x):
                raise InputError(
                    f"{path} has nothing stored for its scale of side {side}: leave the first scale out of ratios, and "
                    "generate each batch from its first scale"
                )
            index = pivots(x, kept, self.score)
            cut = {name: _rows(value, index) if name in self.per_token else value for name, value in kwargs.items()}
            picked = _rows(x, index)
            return restore(_checked(path, forward(picked, *args[1:], **cut), picked), base, index, side)

        with replaced(modules, visit):
            yield count


def pivots(x: Tensor, kept: int, score: str | Score = "mse_to_mean") -> Tensor:
    """Indices of the tokens with the highest scores, (batch, kept), increasing.

    Args:
        x: tokens (batch, tokens, features).
        kept: how many to keep.
        score: see `CachedTokenPruning`.
    """
    scores = score(x) if callable(score) else (x - x.mean(1, keepdim=True)).square().sum(2)
    if scores.shape != x.shape[:2]:
        raise InputError(f"score must give a number per token, {tuple(x.shape[:2])}; got {tuple(scores.shape)}")
    return torch.argsort(scores, dim=1, descending=True, stable=True)[:, :kept].sort(1).values


def restore(new: Tensor, base: Tensor, index: Tensor, side: int) -> Tensor:
    """A full token map: `new` at `index`, elsewhere the stored map, resized by area.

    Args:
        new: outputs of the kept tokens, (batch, kept, features).
        base: the stored map, (batch, tokens of a smaller scale, features).
        index: the kept tokens, (batch, kept).
        side: side of the full map.
    """
    before = math.isqrt(base.shape[1])
    maps = F.interpolate(base.transpose(1, 2).unflatten(2, (before, before)), (side, side), mode="area")
    full = maps.flatten(2).transpose(1, 2).to(new.dtype)
    return full.scatter(1, index[:, :, None].expand(-1, -1, full.shape[2]), new)


def _tokens(path: str, args: Any) -> Tensor:
    if not args or not isinstance(args[0], Tensor) or args[0].ndim != 3:
        raise InputError(
            f"{path} must get tokens (batch, tokens, features) as its first argument; name others, modules="
        )
    return args[0]


def _side(path: str, x: Tensor) -> int:
    side = math.isqrt(x.shape[1])
    if side * side != x.shape[1]:
        raise InputError(
            f"{path} got {x.shape[1]} tokens, not a square map: call the model scale by scale, without more"
        )
    return side


def _checked(path: str, output: Any, x: Tensor) -> Tensor:
    if not isinstance(output, Tensor) or output.shape[:2] != x.shape[:2]:
        raise InputError(
            f"{path} must return a tensor with a row per token, {tuple(x.shape[:2])}; name others, modules="
        )
    return output


def _rows(value: Tensor, index: Tensor) -> Tensor:
    """Rows `index` (batch, kept) of a value with a row per token."""
    whole = value.expand(len(index), *value.shape[1:])
    return whole.gather(1, index.reshape(*index.shape, *(1,) * (value.ndim - 2)).expand(-1, -1, *value.shape[2:]))
