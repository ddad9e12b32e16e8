"""How the parameters of a step are laid out: large tensors as they are, small ones packed together.

A rule sees tiles. For an elementwise rule a tile is one long vector: a large tensor, or many small ones end to
end. For a whole-tensor rule it is a stack (B, ...) of tensors of one shape. The state of packed tensors lives in
one buffer for the tile, and each parameter's entry in `optimizer.state` is a view of it.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors, _unflatten_dense_tensors

PACK = 2**18
"""Most elements in one pack: its gradient, parameters and state together stay in the cache."""

SMALL = 2**15
"""Tensors below this many elements are packed: a call per tensor would cost more than the copy."""


def real(tensor: Tensor) -> Tensor:
    """A complex tensor as pairs of reals, any other tensor as it is."""
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor


def work_dtype(dtype: torch.dtype) -> torch.dtype:
    """Precision of the arithmetic and of the state: double for double parameters, single for all others."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


def lies_alone(param: Tensor, stacked: bool) -> bool:
    """Whether a parameter (complex ones as pairs) is a tile of its own, taken where it lies."""
    return param.numel() >= SMALL and (param.is_contiguous() if stacked else is_dense(param))


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its stretch of memory, in whatever order of axes."""
    if tensor.is_contiguous():
        return True
    axes = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(axes).is_contiguous()


def memory_vector(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory, as a view."""
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


class Tile:
    """What the rule sees at once: here, one large tensor, where it lies.

    Attributes:
        params: the parameters in it.
        stacked: whether the rule sees a stack of whole tensors instead of one long vector.
        buffers: the state, in the shape that the rule sees.
        state: the same, as a list.
        sort: what tiles have in common that can share a compiled step.
        pieces: how it is cut where its state is stored in 8 bits; made at the first step.
    """

    pieces: list[Any] | None = None

    def __init__(self, params: list[Tensor], stacked: bool, buffers: dict[str, Tensor]) -> None:
        self.params = params
        self.stacked = stacked
        self.buffers = buffers
        self.state = list(buffers.values())
        self.strides = real(params[0]).stride()
        self._view = self._seen(real(params[0].detach()))
        self.sort = _sort(self._view, stacked)

    def intact(self) -> bool:
        """False once other memory was put behind the parameter."""
        # The view keeps its own memory alive, so an equal address means the same memory.
        return self._view.data_ptr() == self.params[0].data_ptr()

    def gather(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Parameters and gradients as the rule sees them."""
        grad = real(grads[0])
        if grad.stride() != self.strides:
            grad = torch.empty_like(real(self.params[0])).copy_(grad)
        return self._view, self._seen(grad)

    def scatter(self) -> None:
        """Write gathered parameters back, where they are copies."""

    def _seen(self, tensor: Tensor) -> Tensor:
        return tensor.unsqueeze(0) if self.stacked else memory_vector(tensor)


class Pack(Tile):
    """Several small tensors, or one that is not dense: copied to scratch memory and back."""

    def __init__(
        self, params: list[Tensor], stacked: bool, buffers: dict[str, Tensor], scratch: Sequence[Tensor]
    ) -> None:
        self.params = params
        self.stacked = stacked
        self.buffers = buffers
        self.state = list(buffers.values())
        likes = [real(param) for param in params]
        shape = (len(likes), *likes[0].shape) if stacked else (sum(like.numel() for like in likes),)
        self._work, self._grad = (flat[: math.prod(shape)].view(shape) for flat in scratch)
        self._works, self._grads = (apart(tensor, likes, stacked) for tensor in (self._work, self._grad))
        self.sort = _sort(self._work, stacked)

    def intact(self) -> bool:
        return True

    def gather(self, grads: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        _copy(self._works, self.params)
        _copy(self._grads, grads)
        return self._work, self._grad

    def scatter(self) -> None:
        _copy(self.params, self._works)


def _sort(tensor: Tensor, stacked: bool) -> tuple[Any, ...]:
    # The compiler makes code of its own for axes of length 1.
    lengths = tuple(length > 1 for length in tensor.shape) if stacked else ()
    return tensor.dtype, tensor.device.type, tensor.ndim, lengths, stacked and tensor.shape[0] > 1


def _copy(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    if targets[0].is_complex():
        targets = [real(tensor) for tensor in targets]
    if sources[0].is_complex():
        sources = [real(tensor) for tensor in sources]
    torch._foreach_copy_(list(targets), list(sources))  # pyright: ignore[reportPrivateImportUsage]


def apart(tensor: Tensor, likes: Sequence[Tensor], stacked: bool) -> list[Tensor]:
    """Views of a pack, one for each tensor in it."""
    return list(tensor.unbind() if stacked else _unflatten_dense_tensors(tensor, likes))


@dataclass
class Batch:
    """Parameters of one group that take the same step: of one dtype, one device and one step counter.

    Attributes:
        group: their group.
        names: their state tensors.
        params, states: first those of the direct tiles, then those of the packs, once these are laid out.
        coded: state tensors that are stored in 8 bits.
        block: length of their blocks, 0 if there are none.
        scratch: where they are decoded, piece by piece.
        owners: in the same order, the parameters as the optimizer holds them; other objects than `params` only where
            they are spread over processes.
        direct: the large tensors.
        packs: the others, each with its first and last place among `params`.
        numel: elements in all.
    """

    group: dict[str, Any]
    names: tuple[str, ...]
    params: list[Tensor]
    states: list[dict[str, Any]]
    direct: list[Tile] = field(default_factory=list)
    packs: list[tuple[Pack, int, int]] = field(default_factory=list)
    numel: int = 0
    owners: list[Tensor] = field(default_factory=list)
    coded: tuple[str, ...] = ()
    block: int = 0
    scratch: Tensor | None = None
    _held: list[Tensor] = field(default_factory=list)

    @property
    def t(self) -> int:
        """Number of the step to be taken, from 1."""
        return self.states[0]["step"] + 1

    def intact(self) -> bool:
        """False once state, or the memory behind a parameter, was replaced from outside."""
        try:
            now = chain.from_iterable(map(operator.itemgetter(name), self.states) for name in self.names)
            same = all(map(operator.is_, now, self._held))
            steps = set(map(operator.itemgetter("step"), self.states))
        except KeyError:
            return False
        return same and len(steps) == 1 and all(tile.intact() for tile in self.direct)

    def lay_out(self, stacked: bool) -> None:
        """Cut the batch into tiles; the state of packed tensors moves into shared buffers."""
        alone: list[int] = []
        packs: dict[Any, list[int]] = {}
        for index, param in enumerate(self.params):
            if lies_alone(real(param), stacked):
                alone.append(index)
            else:
                packs.setdefault(self._joins(index, stacked), []).append(index)
        sizes = [real(param).numel() for param in self.params]
        portions = [part for members in packs.values() for part in portion(members, sizes)]
        self.direct = [self._direct(index, stacked) for index in alone]
        self.packs = self._packs(portions, sizes, stacked)
        order = [*alone, *(index for part in portions for index in part)]
        self.owners = [(self.owners or self.params)[index] for index in order]
        self.params = [self.params[index] for index in order]
        self.states = [self.states[index] for index in order]
        self.numel = sum(sizes)
        self._held = [state[name] for name in self.names for state in self.states]

    def _joins(self, index: int, stacked: bool) -> Any:
        """What a packed parameter has in common with those that it is packed with."""
        shape = real(self.params[index]).shape
        if stacked:
            return shape
        return index if self.block and shape.numel() % self.block else None

    def _direct(self, index: int, stacked: bool) -> Tile:
        param, state = real(self.params[index]), self.states[index]
        for name in self.names:
            moved = state[name].shape == param.shape and state[name].stride() != param.stride()
            if moved and not stacked:
                state[name] = torch.empty_like(param, dtype=state[name].dtype).copy_(state[name])
        seen = (lambda tensor: tensor.unsqueeze(0)) if stacked else memory_vector
        return Tile([self.params[index]], stacked, {name: seen(state[name]) for name in self.names})

    def _packs(self, portions: list[list[int]], sizes: list[int], stacked: bool) -> list[tuple[Pack, int, int]]:
        if not portions:
            return []
        first = self.params[0]
        longest = max(sum(sizes[index] for index in part) for part in portions)
        options = {"dtype": work_dtype(first.dtype), "device": first.device}
        scratch = torch.empty(longest, **options), torch.empty(longest, **options)
        start, found = len(self.direct), []
        for part in portions:
            params, states = [self.params[index] for index in part], [self.states[index] for index in part]
            buffers = {name: self._joined(name, states, stacked) for name in self.names}
            found.append((Pack(params, stacked, buffers, scratch), start, start + len(part)))
            start += len(part)
        return found

    @staticmethod
    def _joined(name: str, states: list[dict[str, Any]], stacked: bool) -> Tensor:
        old = [state[name] for state in states]
        buffer = torch.stack(old) if stacked else _flatten_dense_tensors(old)
        for state, view in zip(states, apart(buffer, old, stacked)):
            state[name] = view
        return buffer


def portion(members: Sequence[int], sizes: Sequence[int]) -> Iterator[list[int]]:
    """Cut a list of tensors into parts of at most `PACK` elements, or of one tensor."""
    part: list[int] = []
    total = 0
    for member in members:
        if part and total + sizes[member] > PACK:
            yield part
            part, total = [], 0
        part.append(member)
        total += sizes[member]
    if part:
        yield part
