"""Low-rank compression, and compression of what another compressor left."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.distributed.compressors.base import Compressor, Payload, State, need_key, payload
from hasten.distributed.compressors.sparse import RandK, TopK, _scatter
from hasten.numerics import keys


@dataclass(frozen=True)
class LowRank(Compressor):
    """The vector as a matrix, reduced to `rank` by one power iteration: 4 rank (rows + columns) bytes in float32.

    P = orth(M Q), Q = M'P, message (P, Q), read as P Q'. With `warm` the next message starts from this Q, otherwise
    from fresh noise; then it is contractive with delta = rank/min(rows, columns) at worst.
    Source: Vogels, Karimireddy, Jaggi (2019), arXiv 1905.13727. One matrix for the whole vector, near square.

    Args:
        rank: number of columns of P and Q.
        rows: rows of the matrix, the square root of the length if not given.
        warm: start from the last Q.
    """

    rank: int = 1
    rows: int | None = None
    warm: bool = True

    def __post_init__(self) -> None:
        check.integer("rank", self.rank, 1)
        if self.rows is not None:
            check.integer("rows", self.rows, 1)

    def init(self, d: int, rank: Tensor | int = 0) -> State:
        if not self.warm:
            return {}
        _, columns = self._shape(d)
        return {"q": keys.normal(keys.key(0), columns * self._rank(d), torch.float64).view(columns, -1)}

    def compress(self, v: Tensor, state: State, key: Tensor | None = None) -> tuple[Payload, State]:
        d, (rows, columns) = v.shape[-1], self._shape(v.shape[-1])
        matrix = torch.nn.functional.pad(v, (0, rows * columns - d)).unflatten(-1, (rows, columns))
        if self.warm:
            start = state["q"].to(v.dtype)
        else:
            start = keys.normal(need_key(self, key), columns * self._rank(d), v.dtype).unflatten(-1, (columns, -1))
        p = torch.linalg.qr(matrix @ start).Q
        q = matrix.mT @ p
        # A zero vector would leave a zero basis behind, from which no later message could recover.
        alive = (q.square().sum((-2, -1), keepdim=True) > 0).to(v.dtype)
        kept = {"q": (alive * q + (1 - alive) * start).to(state["q"].dtype)} if self.warm else state
        return payload(self, v, p=p.flatten(-2), q=q.flatten(-2)), kept

    def decompress(self, message: Payload) -> Tensor:
        rows, columns = self._shape(message.dim)
        p = message.parts["p"].unflatten(-1, (rows, -1))
        q = message.parts["q"].unflatten(-1, (columns, -1))
        return (p @ q.mT).flatten(-2)[..., : message.dim]

    def delta(self, d: int) -> float | None:
        return None if self.warm else self._rank(d) / min(self._shape(d))

    def _shape(self, d: int) -> tuple[int, int]:
        rows = min(self.rows or max(1, round(d**0.5)), d)
        return rows, -(-d // rows)

    def _rank(self, d: int) -> int:
        return min(self.rank, *self._shape(d))


@dataclass(frozen=True)
class Compose(Compressor):
    """Sparsify with `inner`, then send the values that are left with `outer`, e.g. `Compose(QSGD(4), TopK(0.1))`.

    With an unbiased `outer` (variance omega): unbiased if `inner` is; if `inner` is contractive the result is read
    divided by 1 + omega and contracts with delta/(1 + omega).
    """

    outer: Compressor
    inner: TopK | RandK

    def __post_init__(self) -> None:
        if not isinstance(self.inner, (TopK, RandK)):
            raise InputError(f"inner must be TopK or RandK, got {type(self.inner).__name__}")
        if not self.outer.unbiased or self.outer.common_key or self.outer.init(1):
            raise InputError(f"outer must be unbiased, alone and without state, got {self.outer}")

    @property
    def unbiased(self) -> bool:
        return self.inner.unbiased

    def compress(self, v: Tensor, state: State, key: Tensor | None) -> tuple[Payload, State]:
        key = need_key(self, key)
        first, _ = self.inner.compress(v, {}, keys.fold(key, 0))
        second, _ = self.outer.compress(first.parts["values"].to(v.dtype), {}, keys.fold(key, 1))
        widths = {name: width for name, width in first.bits if name != "values"}
        widths |= {f"values.{name}": width for name, width in second.bits}
        parts = {name: part for name, part in first.parts.items() if name != "values"}
        parts |= {f"values.{name}": part for name, part in second.parts.items()}
        return payload(self, v, widths, **parts), state

    def decompress(self, message: Payload) -> Tensor:
        names = [(name, bits) for name, bits in message.bits if name.startswith("values.")]
        parts = {name.removeprefix("values."): message.parts[name] for name, _ in names}
        kept = self._kept(message.dim)
        widths = tuple((name.removeprefix("values."), bits) for name, bits in names)
        values = Payload(parts, widths, self.outer, kept, message.dtype).dense()
        rest = {name: part for name, part in message.parts.items() if not name.startswith("values.")}
        if isinstance(self.inner, TopK):
            return _scatter(message, rest["places"], values) / (1.0 + (self.outer.omega(kept) or 0.0))
        first = Payload({**rest, "values": values}, (), self.inner, message.dim, message.dtype)
        dense = self.inner.decompress(first)
        return dense if self.inner.scaled else dense / (1.0 + (self.outer.omega(kept) or 0.0))

    def _kept(self, d: int) -> int:
        return self.inner.compress(torch.zeros(d), {}, keys.key(0))[0].parts["values"].shape[-1]

    def delta(self, d: int) -> float | None:
        inner, omega = self.inner.delta(d), self.outer.omega(self._kept(d))
        return None if inner is None or omega is None else inner / (1.0 + omega)

    def omega(self, d: int) -> float | None:
        inner, outer = self.inner.omega(d), self.outer.omega(self._kept(d))
        return None if inner is None or outer is None else (1.0 + inner) * (1.0 + outer) - 1.0
