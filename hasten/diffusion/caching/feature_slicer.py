"""Streamlined inference of video models: features sliced where a layer allows it, whole groups of layers per slice."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card, Integer
from hasten.core.errors import InputError
from hasten.core.registry import register
from hasten.diffusion.caching.attachment import check_network, replaced

SLICINGS = ("spatial", "temporal", "either", "global")

CARD = Card(
    name="feature-slicer",
    family="diffusion",
    title="Fast and Memory-Efficient Video Diffusion Using Streamlined Inference",
    authors="Zhan, Wu, Gong, Meng, Kong, Yang, Yuan, Zhao, Niu & Wang",
    year=2024,
    arxiv="2411.01171",
    paper_id=238,
    summary="Runs a video model slice by slice, over frames in spatial layers and over pixels in temporal ones.",
    cost="The same operations; about 1/chunks of the activations inside a group of layers.",
    when="Where the activations of a video model do not fit; the output is the same.",
    kinds=("sample",),
    needs=("video",),
    search_space={"chunks_spatial": Integer(2, 16), "chunks_temporal": Integer(2, 16)},
    use=(
        "from hasten.diffusion import FeatureSlicer, Operator\n"
        "operators = [\n"
        '    Operator(torch.nn.Conv2d(4, 4, 3, padding=1), "spatial"),\n'
        '    Operator(torch.nn.SiLU(), "either"),\n'
        '    Operator(torch.nn.TransformerEncoderLayer(4, 2, batch_first=True), "temporal"),\n'
        "]\n"
        "slicer = FeatureSlicer({hyper})\n"
        "features = slicer(operators, torch.randn(1, 4, 8, 6, 6))  # batch, channels, frames, height, width"
    ),
)


class Operator(NamedTuple):
    """A layer of a video model.

    Attributes:
        fn: the layer.
        slicing: how its input may be cut. `spatial` layers take frames (batch frames, channels, height, width),
            one by one; `temporal` layers take pixels along time (batch height width, frames, channels), one by one;
            `either` acts on every number alone; `global` needs the whole (batch, channels, frames, height, width).
    """

    fn: Callable[[Tensor], Tensor]
    slicing: str


class Group(NamedTuple):
    """Consecutive operators that a slice passes through before the next slice is taken."""

    operators: tuple[Operator, ...]
    slicing: str


def group(operators: Sequence[Operator]) -> list[Group]:
    """Operators in groups of the same slicing.

    An operator that acts on every number alone joins the group before it, or the next one if it comes first. Global
    operators end a group and are groups of their own.
    """
    kinds: list[str] = []
    for index, operator in enumerate(operators):
        if not isinstance(operator, Operator):
            raise InputError(f"operators[{index}] must be an Operator(fn, slicing), got {operator!r}")
        check.one_of(f"slicing of operators[{index}]", operator.slicing, SLICINGS)
        joins = operator.slicing == "either" and kinds and kinds[-1] != "global"
        kinds.append(kinds[-1] if joins else operator.slicing)
    for index in range(len(kinds) - 2, -1, -1):
        if kinds[index] == "either":
            kinds[index] = kinds[index + 1] if kinds[index + 1] != "global" else "spatial"
    if kinds and kinds[-1] == "either":
        kinds[-1] = "spatial"
    runs = groupby(zip(kinds, range(len(kinds))), key=lambda run: (run[0], run[1] if run[0] == "global" else -1))
    return [Group(tuple(operators[index] for _, index in members), kind) for (kind, _), members in runs]


@register(CARD)
@dataclass(frozen=True)
class FeatureSlicer:
    """Runs layers of a video model on slices of its five-dimensional features, with the unsliced output.

    Frames never meet in spatial layers, nor pixels in temporal ones, so these are cut over frames and pixels, and a
    slice passes through a whole group of layers before the next is taken. Cutting temporal layers over frames, in
    contrast, would change the output: frames of different slices would not see each other.

    Args:
        chunks_spatial: slices over frames (of all videos of a batch) in groups of spatial layers.
        chunks_temporal: slices over pixels in groups of temporal layers.

    Cost: the same operations; activations of a group fall to about 1/chunks, beside its input and output.
    Source: Zhan et al. (2024), arXiv 2411.01171.
    """

    card: ClassVar[Card] = CARD
    chunks_spatial: int = 16
    chunks_temporal: int = 8

    def __post_init__(self) -> None:
        check.integer("chunks_spatial", self.chunks_spatial, 1)
        check.integer("chunks_temporal", self.chunks_temporal, 1)

    def __call__(self, operators: Sequence[Operator], x: Tensor) -> Tensor:
        """Features (batch, channels, frames, height, width) after all operators, in order."""
        if x.ndim != 5:
            raise InputError(f"features must be (batch, channels, frames, height, width), got {tuple(x.shape)}")
        for members, slicing in group(operators):
            if slicing == "global":
                x = members[0].fn(x)
            elif slicing == "spatial":
                batch, frames = x.shape[0], x.shape[2]
                rows = x.transpose(1, 2).flatten(0, 1)
                x = _sliced(members, rows, self.chunks_spatial).unflatten(0, (batch, frames)).transpose(1, 2)
            else:
                size = (x.shape[0], *x.shape[3:])
                rows = x.permute(0, 3, 4, 2, 1).flatten(0, 2)
                x = _sliced(members, rows, self.chunks_temporal).unflatten(0, size).permute(0, 4, 3, 1, 2)
        return x

    @contextmanager
    def attached(
        self, model: nn.Module, *, spatial: Sequence[str] = (), temporal: Sequence[str] = ()
    ) -> Iterator[nn.Module]:
        """Slice modules inside a network for the length of a `with` block.

        Args:
            model: the network.
            spatial, temporal: paths of modules whose inputs are cut over their first dimension: frames for spatial,
                pixels for temporal modules. Tensors of another first dimension go to every slice whole.
        """
        inside = dict(check_network(model).named_modules())
        for path in (*spatial, *temporal):
            if path not in inside:
                raise InputError(f"the network has no module {path!r}; `model.named_modules()` lists them")

        def visit(path: str, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            chunks = self.chunks_spatial if path in spatial else self.chunks_temporal
            rows = next(value.shape[0] for value in (*args, *kwargs.values()) if isinstance(value, Tensor))
            return _joined(_pieces(forward, args, kwargs, rows, chunks))

        with replaced({path: inside[path] for path in (*spatial, *temporal)}, visit):
            yield model


def _bounds(rows: int, chunks: int) -> Iterator[slice]:
    size = -(-rows // chunks)
    return (slice(start, min(start + size, rows)) for start in range(0, rows, size))


def _sliced(members: Sequence[Operator], rows: Tensor, chunks: int) -> Tensor:
    """Rows after a group of operators, slice by slice, written into one output where no gradient needs them apart."""
    if torch.is_grad_enabled():
        return torch.cat([_through(members, rows[part]) for part in _bounds(len(rows), chunks)])
    output: Tensor | None = None
    for part in _bounds(len(rows), chunks):
        piece = _through(members, rows[part])
        if output is None:
            output = piece.new_empty(len(rows), *piece.shape[1:])
        output[part] = piece
        del piece
    assert output is not None
    return output


def _through(members: Sequence[Operator], piece: Tensor) -> Tensor:
    """A slice after a group of operators."""
    count = len(piece)
    for operator in members:
        piece = operator.fn(piece)
    if len(piece) != count:
        raise InputError(
            f"{members[0].slicing} operators must keep the {count} rows of a slice, got {len(piece)}; mark operators "
            "that mix them as global"
        )
    return piece


def _pieces(forward: Callable[..., Any], args: Any, kwargs: Any, rows: int, chunks: int) -> Iterator[Any]:
    for part in _bounds(rows, chunks):
        cut = [value[part] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value for value in args]
        named = {
            name: value[part] if isinstance(value, Tensor) and value.shape[:1] == (rows,) else value
            for name, value in kwargs.items()
        }
        yield forward(*cut, **named)


def _joined(pieces: Iterator[Any]) -> Any:
    parts = list(pieces)
    if isinstance(parts[0], Tensor):
        return torch.cat(parts)
    return type(parts[0])(torch.cat(column) for column in zip(*parts))
