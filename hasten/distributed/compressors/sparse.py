"""Compressors that send some of the entries."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core import check
from hasten.distributed.compressors.base import Compressor, Payload, State, check_count, count, need_key, payload
from hasten.numerics import keys


@dataclass(frozen=True)
class TopK(Compressor):
    """The `k` entries of largest magnitude, with their places: k (4 + 4) bytes in float32. Contractive, delta = k/d.

    Args:
        k: number of entries, or the fraction of all entries as a float in (0, 1].
        wire: dtype in which values travel; that of the vector if not given.
    """

    k: int | float
    wire: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("k", self.k)

    def compress(self, v: Tensor, state: State, key: Tensor | None = None) -> tuple[Payload, State]:
        places = v.abs().topk(count("k", self.k, v.shape[-1]), dim=-1, sorted=False).indices
        values = v.gather(-1, places).to(self.wire or v.dtype)
        return payload(self, v, {"places": 32}, values=values, places=places), state

    def decompress(self, message: Payload) -> Tensor:
        return _scatter(message, message.parts["places"], message.parts["values"])

    def delta(self, d: int) -> float:
        return count("k", self.k, d) / d


@dataclass(frozen=True)
class RandK(Compressor):
    """`k` entries at random. Scaled by d/k it is unbiased with omega = d/k - 1, unscaled contractive with delta = k/d.

    Args:
        k: number of entries, or the fraction of all entries as a float in (0, 1].
        shared_seed: send the 8-byte seed of the places (4k + 8 bytes in float32) instead of the places (4k + 4k).
        scaled: unbiased, or contractive.
        wire: dtype in which values travel; that of the vector if not given.
    """

    k: int | float
    shared_seed: bool = True
    scaled: bool = True
    wire: torch.dtype | None = None

    def __post_init__(self) -> None:
        check_count("k", self.k)

    @property
    def unbiased(self) -> bool:
        return self.scaled

    def compress(self, v: Tensor, state: State, key: Tensor | None) -> tuple[Payload, State]:
        key = need_key(self, key)
        places = self._places(key, v.shape[-1]).expand(*v.shape[:-1], -1)
        values = v.gather(-1, places).to(self.wire or v.dtype)
        if self.shared_seed:
            return payload(self, v, values=values, seed=key.expand(v.shape[:-1]).unsqueeze(-1)), state
        return payload(self, v, {"places": 32}, values=values, places=places), state

    def decompress(self, message: Payload) -> Tensor:
        parts, d = message.parts, message.dim
        places = self._places(parts["seed"][..., 0], d) if self.shared_seed else parts["places"]
        scale = d / count("k", self.k, d) if self.scaled else 1.0
        return _scatter(message, places, parts["values"]) * scale

    def _places(self, key: Tensor, d: int) -> Tensor:
        return keys.permutation(key, d)[..., : count("k", self.k, d)]

    def delta(self, d: int) -> float | None:
        return None if self.scaled else count("k", self.k, d) / d

    def omega(self, d: int) -> float | None:
        return d / count("k", self.k, d) - 1.0 if self.scaled else None


@dataclass(frozen=True)
class PermK(Compressor):
    """Each of `n` workers sends its own share of a common random permutation, times n: 4 ceil(d/n) + 8 bytes.

    Unbiased with omega = n - 1 for each worker alone; when all workers hold the same vector their mean is exact.
    Source: Szlendak, Tyurin, Richtarik (2021), arXiv 2110.03300. The seed and the rank share 8 bytes.

    Args:
        n: number of workers.
        wire: dtype in which values travel; that of the vector if not given.
    """

    n: int
    wire: torch.dtype | None = None
    common_key = True

    def __post_init__(self) -> None:
        check.integer("n (workers)", self.n, 1, 1 << 20)

    @property
    def unbiased(self) -> bool:
        return True

    def init(self, d: int, rank: Tensor | int = 0) -> State:
        return {"rank": torch.as_tensor(rank, dtype=torch.int64)}

    def compress(self, v: Tensor, state: State, key: Tensor | None) -> tuple[Payload, State]:
        seed = (need_key(self, key) & ~0xFFFFF) | state["rank"]
        places = self._places(seed, v.shape[-1]).expand(*v.shape[:-1], -1)
        padded = torch.nn.functional.pad(v, (0, self._share(v.shape[-1]) * self.n - v.shape[-1]))
        values = padded.gather(-1, places).to(self.wire or v.dtype)
        return payload(self, v, values=values, seed=seed.expand(v.shape[:-1]).unsqueeze(-1)), state

    def decompress(self, message: Payload) -> Tensor:
        places = self._places(message.parts["seed"][..., 0], message.dim)
        values = message.parts["values"].to(message.dtype) * self.n
        padded = values.new_zeros(self._share(message.dim) * self.n).expand(*values.shape[:-1], -1)
        return padded.scatter(-1, places, values)[..., : message.dim]

    def _share(self, d: int) -> int:
        return -(-d // self.n)

    def _places(self, seed: Tensor, d: int) -> Tensor:
        share = self._share(d)
        order = keys.permutation(seed & ~0xFFFFF, share * self.n)
        mine = (seed & 0xFFFFF).unsqueeze(-1) * share + torch.arange(share, device=seed.device)
        return order.gather(-1, mine)

    def omega(self, d: int) -> float:
        return self.n - 1.0


def _scatter(message: Payload, places: Tensor, values: Tensor) -> Tensor:
    empty = torch.zeros(message.dim, dtype=message.dtype, device=values.device)
    return empty.expand(*values.shape[:-1], -1).scatter(-1, places, values.to(message.dtype))
