"""How the parameters of a step are laid out: large tensors as they are, small ones packed together.

A rule sees tiles. For an elementwise rule a tile is one long vector: a large tensor, or many small ones end to
end. For a whole-tensor rule it is a stack (B, ...) of tensors of one shape. The state of packed tensors lives in
one buffer for the tile, and each parameter's entry in `optimizer.state` is a view of it.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
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


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills its stretch of memory, in whatever order of axes."""
    if tensor.is_contiguous():
        return True
    axes = sorted(range(tensor.ndim), key=tensor.stride, reverse=True)
    return tensor.permute(axes).is_contiguous()


def memory_vector(tensor: Tensor) -> Tensor:
    """The elements of a dense tensor in the order of memory, as a view."""
    return tensor.view(-1) if tensor.is_contiguous() else tensor.as_strided((tensor.numel(),), (1,))


@dataclass
class Tile:
    """What the rule sees at once.

    Attributes:
        params: the parameters in it.
        packed: whether they are gathered before the rule and scattered after it.
        stacked: whether the rule sees a stack of whole tensors instead of one long vector.
        buffers: the state, in the shape that the rule sees.
        strides: of a tensor that is used in place, to notice when its data was replaced by others.
    """

    params: list[Tensor]
    packed: bool
    stacked: bool
    buffers: dict[str, Tensor]
    strides: tuple[int, ...] = ()

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Parameters or gradients in the shape that the rule sees: a view if possible, else a copy."""
        if not self.packed:
            tensor = real(tensors[0])
            if tensor.stride() != self.strides:
                tensor = torch.empty_like(real(self.params[0])).copy_(tensor)
            return tensor.unsqueeze(0) if self.stacked else memory_vector(tensor)
        if self.stacked:
            return torch.stack([real(tensor) for tensor in tensors])
        return _flatten_dense_tensors([real(tensor) for tensor in tensors])

    def scatter(self, work: Tensor) -> None:
        """Write a gathered copy of the parameters back."""
        if self.packed:
            params = [real(param) for param in self.params]
            values = work.unbind() if self.stacked else _unflatten_dense_tensors(work, params)
            torch._foreach_copy_(params, list(values))  # pyright: ignore[reportPrivateImportUsage]


@dataclass
class Batch:
    """Parameters of one group that take the same step: of one dtype, one device and one step counter.

    Attributes:
        group: their group.
        names: their state tensors.
        params, states: in the order of the tiles, once these are laid out.
        tiles: how the rule sees them.
    """

    group: dict[str, Any]
    names: tuple[str, ...]
    params: list[Tensor]
    states: list[dict[str, Any]]
    tiles: list[Tile] = field(default_factory=list)
    numel: int = 0
    _held: list[Tensor] = field(default_factory=list)

    @property
    def t(self) -> int:
        """Number of the step to be taken, from 1."""
        return self.states[0]["step"] + 1

    def intact(self) -> bool:
        """False once state, or the memory behind a parameter, was replaced from outside."""
        now = [state.get(name) for state in self.states for name in self.names]
        return (
            all(map(operator.is_, now, self._held))
            and len({state.get("step") for state in self.states}) == 1
            and all(tile.packed or real(tile.params[0]).stride() == tile.strides for tile in self.tiles)
        )

    def lay_out(self, stacked: bool) -> None:
        """Cut the batch into tiles; the state of packed tensors moves into shared buffers."""
        alone: list[int] = []
        packs: dict[Any, list[int]] = {}
        for index, param in enumerate(self.params):
            if param.numel() < SMALL or not (param.is_contiguous() if stacked else is_dense(real(param))):
                packs.setdefault(real(param).shape if stacked else None, []).append(index)
            else:
                alone.append(index)
        sizes = [param.numel() for param in self.params]
        portions = [part for members in packs.values() for part in portion(members, sizes)]
        self.tiles = [self._direct(index, stacked) for index in alone]
        self.tiles += [self._pack(part, stacked) for part in portions]
        order = [*alone, *(index for part in portions for index in part)]
        self.params = [self.params[index] for index in order]
        self.states = [self.states[index] for index in order]
        self.numel = sum(sizes)
        self._held = [state[name] for state in self.states for name in self.names]

    def _direct(self, index: int, stacked: bool) -> Tile:
        param, state = real(self.params[index]), self.states[index]
        for name in self.names:
            if not stacked and state[name].stride() != param.stride():
                state[name] = torch.empty_like(param, dtype=state[name].dtype).copy_(state[name])
        view = (lambda tensor: tensor.unsqueeze(0)) if stacked else memory_vector
        buffers = {name: view(state[name]) for name in self.names}
        return Tile([self.params[index]], False, stacked, buffers, param.stride())

    def _pack(self, members: list[int], stacked: bool) -> Tile:
        states = [self.states[index] for index in members]
        buffers = {}
        for name in self.names:
            old = [state[name] for state in states]
            buffers[name] = torch.stack(old) if stacked else _flatten_dense_tensors(old)
            views = buffers[name].unbind() if stacked else _unflatten_dense_tensors(buffers[name], old)
            for state, view in zip(states, views):
                state[name] = view
        return Tile([self.params[index] for index in members], True, stacked, buffers)


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
