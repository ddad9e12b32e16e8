"""State of a rule kept in 8 bits: decoded piece by piece into scratch memory, updated in 32 bits, encoded again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.optim import backends
from hasten.optim.layout import Batch, Tile, lies_alone, memory_vector, work_dtype
from hasten.optim.memory.blockwise import BLOCK, blocks, decode_, decode_fused, encode_, encode_fused

ABSMAX = "_absmax"
"""Added to the name of a state tensor: the largest entry of each of its blocks."""

STORED = "_stored"
"""Added to the name of a tensor in 8 bits where the decoded one bears the name."""

PIECE = 2**17
"""Elements that are decoded at once: they stay in the cache until they are encoded again."""

NONNEGATIVE = ("_sq", "_var", "square_avg")
"""How names of state end that holds squares; of PyTorch's Adagrad, the state "sum" does too."""

Signs = tuple[tuple[str, bool], ...]


@dataclass(frozen=True)
class Blockwise:
    """What is stored in 8 bits, and how.

    Attributes:
        block: entries that share a largest value.
        min_size: state tensors with fewer entries stay as they are.
        names: state tensors that are stored so; None for all.
        unsigned: those of them that are never negative; None to tell by the name.
    """

    block: int = BLOCK
    min_size: int = 4096
    names: tuple[str, ...] | None = None
    unsigned: tuple[str, ...] | None = None

    def coded(self, shapes: Mapping[str, Sequence[int]]) -> tuple[str, ...]:
        """Which of the state tensors of a parameter are stored in 8 bits."""
        sizes = {name: torch.Size(shape).numel() for name, shape in shapes.items()}
        return tuple(name for name, size in sizes.items() if self.takes(name) and size >= max(1, self.min_size))

    def takes(self, name: str) -> bool:
        """Whether state of this name is stored in 8 bits, if it is large enough."""
        return self.names is None or name in self.names

    def signed(self, name: str) -> bool:
        """Whether state of this name may be negative."""
        if self.unsigned is not None:
            return name not in self.unsigned
        return not (name.endswith(NONNEGATIVE) or name == "sum")

    def encode(self, name: str, value: Tensor) -> tuple[Tensor, Tensor]:
        """Codes and block maxima of a dense tensor, in blocks along its memory."""
        codes = torch.empty_like(value, dtype=torch.uint8)
        absmax = value.new_empty(blocks(value.numel(), self.block), dtype=torch.float32)
        encode_(
            memory_vector(value)[None], memory_vector(codes)[None], absmax[None], self.block, self.signed(name), True
        )
        return codes, absmax

    def decode(self, name: str, codes: Tensor, absmax: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
        """The tensor that was encoded."""
        value = torch.empty_like(codes, dtype=dtype)
        absmax = absmax.to(torch.float32)[None]
        decode_(memory_vector(codes)[None], absmax, memory_vector(value)[None], self.block, self.signed(name))
        return value

    def prepare(
        self, state: MutableMapping[str, Any], shapes: Mapping[str, Sequence[int]], like: Tensor, stacked: bool
    ) -> tuple[str, ...]:
        """Bring the state of a parameter into this form, in the order of memory in which steps go through it."""
        coded = self.coded(shapes)
        for name in coded:
            value = state[name]
            kept = not stacked and value.shape == like.shape and lies_alone(like, stacked)
            order = torch.empty_like(like, device="meta") if kept else torch.empty(value.shape, device="meta")
            if value.dtype == torch.uint8:
                state[name + ABSMAX] = state[name + ABSMAX].to(torch.float32)
                if value.stride() == order.stride():
                    continue
                value = self.decode(name, value, state[name + ABSMAX])
            value = torch.empty_strided(order.shape, order.stride(), dtype=value.dtype, device=value.device).copy_(
                value
            )
            state[name], state[name + ABSMAX] = self.encode(name, value)
        return coded

    def compile(
        self,
        update: backends.Update,
        batch: Batch,
        varying: Mapping[str, Any],
        fixed: Mapping[str, Any],
        numbers: Tensor,
    ) -> Compiled:
        """The compiled forms of a step on a batch that has state in 8 bits."""
        signs = self._signs(batch.coded)
        rest = [name for name in batch.names if name.removesuffix(ABSMAX) not in batch.coded]
        plain = (*batch.coded, *rest)
        stored = [key + STORED for name in batch.coded for key in (name, name + ABSMAX)]
        return Compiled(
            numbers,
            backends.program(update, plain, varying, fixed),
            backends.program(_opening(update, signs, self.block), (*plain, *stored), varying, fixed, True),
            backends.program(_closing(signs, self.block), (*batch.coded, *stored), {}, {}, True),
        )

    def run(
        self,
        batch: Batch,
        tile: Tile,
        work: Tensor,
        grad: Tensor,
        update: backends.Update,
        values: Mapping[str, Any],
        compiled: Compiled | None,
    ) -> None:
        """One step of a rule on a tile that has state in 8 bits."""
        if tile.stacked:
            self._run_stack(batch, tile, work, grad, update, values, compiled)
            return
        if tile.pieces is None:
            tile.pieces = self._cut(batch, tile, work)
        for piece in tile.pieces:
            ends = work[piece.start : piece.stop], grad[piece.start : piece.stop]
            fused = compiled if piece.fuses else None
            if fused is None or not fused.opening.run(piece.whole, *ends, fused.numbers):
                self._decode_rows(piece.signs, piece.stored, piece.opened)
                backends.advance(update, *ends, {**piece.opened, **piece.rest}, values)
            if fused is None or not fused.closing.run(piece.coded, piece.first, piece.first, fused.numbers[:0]):
                self._encode_rows(piece.signs, piece.opened, piece.stored)

    def _cut(self, batch: Batch, tile: Tile, work: Tensor) -> list[Piece]:
        """Pieces of one vector: whole blocks that fit the cache together, and the last block, if it is shorter."""
        coded, numel = batch.coded, work.numel()
        signs = self._signs(coded)
        whole = numel // self.block * self.block
        step = max(1, PIECE // self.block) * self.block
        bounds = [(start, min(start + step, whole)) for start in range(0, whole, step)]
        if whole < numel:
            bounds.append((whole, numel))
        if batch.scratch is None:
            batch.scratch = work.new_empty((len(coded), step), dtype=work_dtype(work.dtype))
        pieces = []
        for start, stop in bounds:
            first, last = start // self.block, blocks(stop, self.block)
            opened = {name: row[: stop - start] for name, row in zip(coded, batch.scratch.unbind())}
            stored = {name: tile.buffers[name][start:stop] for name in coded}
            stored |= {name + ABSMAX: tile.buffers[name + ABSMAX][first:last] for name in coded}
            rest = {name: tile.buffers[name][start:stop] for name in _rest(tile, coded)}
            # The compiler makes code of its own for what has length 1, and a shorter block would need other code too.
            pieces.append(
                Piece(start, stop, last - first > 1 and stop <= whole, signs, opened, stored, rest, tile.sort)
            )
        return pieces

    def _run_stack(
        self,
        batch: Batch,
        tile: Tile,
        work: Tensor,
        grad: Tensor,
        update: backends.Update,
        values: Mapping[str, Any],
        compiled: Compiled | None,
    ) -> None:
        coded = batch.coded
        opened = {name: torch.empty_like(tile.buffers[name], dtype=work_dtype(work.dtype)) for name in coded}
        self._decode_rows(self._signs(coded), tile.buffers, opened)
        seen = Seen({**opened, **{name: tile.buffers[name] for name in _rest(tile, coded)}}, tile.sort, stacked=True)
        if compiled is None or not compiled.plain.run(seen, work, grad, compiled.numbers):
            backends.run_eager(update, seen, work, grad, values)
        self._encode_rows(self._signs(coded), opened, tile.buffers)

    def _signs(self, coded: Sequence[str]) -> Signs:
        return tuple((name, self.signed(name)) for name in coded)

    def _decode_rows(self, signs: Signs, stored: Mapping[str, Tensor], opened: Mapping[str, Tensor]) -> None:
        for name, signed in signs:
            codes, absmax, value = _rows(stored[name], stored[name + ABSMAX], opened[name])
            decode_(codes, absmax, value, self.block, signed)

    def _encode_rows(self, signs: Signs, opened: Mapping[str, Tensor], stored: Mapping[str, Tensor]) -> None:
        for name, signed in signs:
            codes, absmax, value = _rows(stored[name], stored[name + ABSMAX], opened[name])
            encode_(value, codes, absmax, self.block, signed, lift=True)


def _rows(codes: Tensor, absmax: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    if absmax.ndim == 1:
        return codes[None], absmax[None], value[None]
    return codes.flatten(1), absmax, value.flatten(1)


def _rest(tile: Tile, coded: Sequence[str]) -> list[str]:
    return [name for name in tile.buffers if name.removesuffix(ABSMAX) not in coded]


class Seen:
    """State as a rule sees it; what the backends take for a tile."""

    def __init__(self, buffers: dict[str, Tensor], sort: tuple[Any, ...], stacked: bool = False) -> None:
        self.buffers = buffers
        self.state = list(buffers.values())
        self.sort = sort
        self.stacked = stacked


class Piece:
    """A stretch of a tile, and memory to decode its state in.

    Attributes:
        start, stop: where it lies.
        fuses: whether the compiled forms take it.
        signs: state in 8 bits, and which of it may be negative.
        opened: memory for that state.
        stored: its codes and block maxima.
        rest: the state in 32 bits.
        whole, coded: all of it, and without the rest, for the compiled forms.
        first: any decoded state.
    """

    def __init__(
        self,
        start: int,
        stop: int,
        fuses: bool,
        signs: Signs,
        opened: dict[str, Tensor],
        stored: dict[str, Tensor],
        rest: dict[str, Tensor],
        sort: tuple[Any, ...],
    ) -> None:
        self.start, self.stop, self.fuses, self.signs = start, stop, fuses, signs
        self.opened, self.stored, self.rest = opened, stored, rest
        kept = {key + STORED: stored[key] for name in opened for key in (name, name + ABSMAX)}
        self.whole = Seen({**opened, **rest, **kept}, sort)
        self.coded = Seen({**opened, **kept}, sort)
        self.first = next(iter(opened.values()))


@dataclass
class Compiled:
    """The compiled forms of a step: on decoded state; decoding with it; encoding."""

    numbers: Tensor
    plain: backends.Program
    opening: backends.Program
    closing: backends.Program


@cache
def _opening(update: backends.Update, signs: Signs, block: int) -> Callable[..., None]:
    """Decoding, and the update on the decoded state, as one update."""

    def opening(p: Tensor, g: Tensor, **tensors: Any) -> None:
        for name, signed in signs:
            codes, absmax = tensors.pop(name + STORED), tensors.pop(name + ABSMAX + STORED)
            tensors[name].copy_(decode_fused(codes.view(absmax.shape[0], block), absmax, signed).view(-1))
        update(p, g, **tensors)

    return opening


@cache
def _closing(signs: Signs, block: int) -> Callable[..., None]:
    """Encoding, as an update of the stored state."""

    def closing(p: Tensor, g: Tensor, **tensors: Any) -> None:
        for name, signed in signs:
            codes, absmax = tensors[name + STORED], tensors[name + ABSMAX + STORED]
            rows = tensors[name].view(absmax.shape[0], block).to(torch.float32)
            largest = (rows.abs() if signed else rows).amax(-1)
            codes.copy_(encode_fused(rows, largest, signed, lift=True).view(-1))
            absmax.copy_(largest)

    return closing


def check_saved(
    storage: Blockwise | None, name: str, state: Mapping[str, Any], shapes: Mapping[str, Sequence[int]]
) -> None:
    """Raise `InputError` unless saved state of this optimizer can be taken over into this form.

    State in 8 bits must be of the same form; state in 32 bits is taken over and encoded at the next step.
    """
    coded = storage.coded(shapes) if storage is not None else ()
    for key, shape in shapes.items():
        if getattr(state[key], "dtype", None) != torch.uint8:
            continue
        if storage is None or key not in coded:
            raise InputError(
                f"state_dict has {key} in 8 bits for a parameter whose state this {name} keeps in 32 bits; attach "
                "QuantizedState with the same names and min_size first"
            )
        wanted = blocks(torch.Size(shape).numel(), storage.block)
        absmax = state.get(key + ABSMAX)
        if absmax is None or tuple(absmax.shape) != (wanted,):
            found = "none" if absmax is None else tuple(absmax.shape)
            raise InputError(
                f"state_dict has {key + ABSMAX} shaped {found}, where block={storage.block} needs ({wanted},); attach "
                "QuantizedState with the block length that it was saved with"
            )
