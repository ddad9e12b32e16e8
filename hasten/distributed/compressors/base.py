"""What goes over the wire: payloads that know their size to the byte, and the interface of the compressors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from hasten.core import check
from hasten.core.errors import InputError

State = dict[str, Tensor]


@dataclass(frozen=True)
class Payload:
    """A message as it travels.

    Attributes:
        parts: tensors by name, each `[..., entries]`; leading axes stack the messages of several clients. Integer
            parts narrower than 64 bits hold codes that are not negative.
        bits: bits per entry of each part that travels; floating parts travel in their own dtype. Parts that are
            not named here are known to the receiver already.
        codec: what can read it; None where the receiver interprets the parts itself.
        dim: length of the vector that it stands for.
        dtype: dtype of that vector.
    """

    parts: dict[str, Tensor]
    bits: tuple[tuple[str, int], ...]
    codec: Codec | None
    dim: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Size on the wire, of all stacked messages together; each message is rounded up to whole bytes per part."""
        return sum(
            (tensor.numel() // max(tensor.shape[-1], 1)) * _size(tensor.shape[-1], bits)
            for bits, tensor in ((bits, self.parts[name]) for name, bits in self.bits)
        )

    def dense(self) -> Tensor:
        """The vector(s) that it stands for, `[..., dim]`."""
        if self.codec is None:
            raise InputError("this payload has no codec; its receiver must interpret the parts itself")
        return self.codec.decompress(self)

    def to_tensor(self) -> Tensor:
        """The bytes of each message, uint8 `[messages, nbytes of one]`, on the device of the parts."""
        columns = []
        for name, bits in self.bits:
            tensor = self.parts[name].detach()
            columns.append(_pack(tensor.reshape(-1, tensor.shape[-1]), bits))
        return torch.cat(columns, dim=1)

    def to_bytes(self) -> bytes:
        """The bytes of one message, or of stacked ones in order."""
        return self.to_tensor().cpu().numpy().tobytes()

    def from_tensor(self, table: Tensor) -> Payload:
        """Inverse of `to_tensor`, for stacked messages of the same form as this one."""
        sizes = [_size(self.parts[name].shape[-1], bits) for name, bits in self.bits]
        parts = dict(self.parts)
        for (name, bits), column in zip(self.bits, table.split(sizes, dim=1)):
            parts[name] = _unpack(column, self.parts[name].shape[-1], bits, self.parts[name].dtype)
        return Payload(parts, self.bits, self.codec, self.dim, self.dtype)

    def from_bytes(self, data: bytes) -> Payload:
        """Inverse of `to_bytes`, for one message of the same form as this one."""
        rows = self.from_tensor(torch.frombuffer(bytearray(data), dtype=torch.uint8).unsqueeze(0)).parts
        parts = {name: rows[name][0] for name, _ in self.bits}
        return Payload(self.parts | parts, self.bits, self.codec, self.dim, self.dtype)


def payload(codec: Codec | None, v: Tensor, bits: dict[str, int] | None = None, **parts: Tensor) -> Payload:
    """Put a message together; `bits` names the width of the integer parts, floating ones have their dtype's."""
    widths = tuple((name, (bits or {}).get(name, 8 * part.element_size())) for name, part in parts.items())
    return Payload(parts, widths, codec, v.shape[-1], v.dtype)


def _flatten(message: Payload) -> tuple[list[Tensor], Any]:
    return list(message.parts.values()), (tuple(message.parts), message.bits, message.codec, message.dim, message.dtype)


def _unflatten(leaves: Any, context: Any) -> Payload:
    names, *rest = context
    return Payload(dict(zip(names, leaves)), *rest)


_pytree.register_pytree_node(Payload, _flatten, _unflatten)


class Codec(ABC):
    """What can read a payload."""

    @abstractmethod
    def decompress(self, message: Payload) -> Tensor:
        """The vector that the receiver reads, `[..., dim]`."""


class Compressor(Codec):
    """Maps a vector to a smaller payload. Frozen, without state of its own; all of it is pure.

    `compress` and `decompress` work on the last axis, take any number of leading axes, and run under
    `torch.func.vmap`.

    Attributes:
        common_key: all workers of a round must use one key (the parts that they send depend on each other).
    """

    common_key: bool = False

    @property
    def unbiased(self) -> bool:
        """Whether the mean of C(v) over keys is v."""
        return False

    def init(self, d: int, rank: Tensor | int = 0) -> State:
        """State of worker `rank` before its first message of length `d`; most compressors have none."""
        return {}

    @abstractmethod
    def compress(self, v: Tensor, state: State, key: Tensor | None) -> tuple[Payload, State]:
        """The payload of `v`, and the next state. `key` feeds the random ones; see `hasten.numerics.keys`."""

    def delta(self, d: int) -> float | None:
        """The contraction E|C(v) - v|^2 <= (1 - delta) |v|^2 for vectors of length `d`, None if it is none."""
        return None

    def omega(self, d: int) -> float | None:
        """The variance E|C(v) - v|^2 <= omega |v|^2 of an unbiased one, else None."""
        return None

    def __call__(self, v: Tensor, key: Tensor | None = None) -> Tensor:
        """What the receiver reads when `v` is sent once: `decompress(compress(v))`."""
        return self.compress(v, self.init(v.shape[-1]), key)[0].dense()


@dataclass(frozen=True)
class Identity(Compressor):
    """No compression: 4 bytes per float32 entry.

    Args:
        wire: dtype in which values travel; that of the vector if not given.
    """

    wire: torch.dtype | None = None

    @property
    def unbiased(self) -> bool:
        return True

    def compress(self, v: Tensor, state: State, key: Tensor | None = None) -> tuple[Payload, State]:
        return payload(self, v, values=v.to(self.wire or v.dtype)), state

    def decompress(self, message: Payload) -> Tensor:
        return message.parts["values"].to(message.dtype)

    def delta(self, d: int) -> float:
        return 1.0

    def omega(self, d: int) -> float:
        return 0.0


def count(name: str, k: float, d: int) -> int:
    """How many of `d` entries: `k` itself if an integer (at most `d`), that fraction of `d` if a float in (0, 1]."""
    return min(k, d) if isinstance(k, int) else max(1, round(k * d))


def check_count(name: str, k: float) -> None:
    """Refuse a `k` that is neither a positive integer nor a fraction in (0, 1]."""
    if isinstance(k, float):
        check.real(f"{name} as a fraction of the entries", k, 0.0, 1.0, open_low=True)
    else:
        check.integer(f"{name} (entries to keep)", k, 1)


def need_key(codec: Compressor, key: Tensor | None) -> Tensor:
    """The key, or an error that says how to get one."""
    if key is None:
        raise InputError(f"{type(codec).__name__} is random: give it a key, e.g. hasten.numerics.keys.key(0)")
    return key


def _size(entries: int, bits: int) -> int:
    return (entries * bits + 7) // 8


def _pack(rows: Tensor, bits: int) -> Tensor:
    """Each row as whole bytes, uint8 `[messages, bytes]`, lowest bit first."""
    if bits == 8 * rows.element_size():
        return rows.contiguous().view(torch.uint8)
    planes = (rows.to(torch.int64).unsqueeze(-1) >> torch.arange(bits, device=rows.device)) & 1
    planes = nn.functional.pad(planes.flatten(1), (0, -rows.shape[1] * bits % 8)).unflatten(1, (-1, 8))
    return (planes << torch.arange(8, device=rows.device)).sum(-1).to(torch.uint8)


def _unpack(table: Tensor, entries: int, bits: int, dtype: torch.dtype) -> Tensor:
    if bits == 8 * dtype.itemsize:
        return table.clone(memory_format=torch.contiguous_format).view(dtype)
    planes = (table.unsqueeze(-1).to(torch.int64) >> torch.arange(8, device=table.device)) & 1
    planes = planes.flatten(1)[:, : entries * bits].unflatten(1, (entries, bits))
    return (planes << torch.arange(bits, device=table.device)).sum(-1).to(dtype)
