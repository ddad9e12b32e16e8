"""Random numbers as a pure function of a key: the same draws on every machine, under `torch.func.vmap`, in any order.

A key is an int64 tensor. Counter-based (SplitMix64: Steele, Lea, Flood, 2014), so that a seed of 8 bytes stands for a
whole vector on both ends of a wire, whatever the device.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_FIRST = 0xBF58476D1CE4E5B9 - (1 << 64)
_SECOND = 0x94D049BB133111EB - (1 << 64)
_CHILD = 0x2545F4914F6CDD1D
_INT64 = (1 << 64) - 1


def key(seed: int) -> Tensor:
    """The key of an integer seed, a 0-dim int64 tensor."""
    return _mix(torch.tensor(_signed(seed), dtype=torch.int64) ^ _CHILD)


def from_generator(generator: torch.Generator) -> Tensor:
    """A key drawn from a torch generator."""
    return torch.randint(-(1 << 63), (1 << 63) - 1, (), generator=generator, dtype=torch.int64)


def fold(key: Tensor, data: Tensor | int) -> Tensor:
    """A new key for each entry of `data` (an integer or an int64 tensor); shapes broadcast."""
    if isinstance(data, int):
        data = torch.tensor(_signed(data), dtype=torch.int64, device=key.device)
    return _mix(_mix(key ^ _CHILD) + data * _GAMMA)


def bits(key: Tensor, count: int) -> Tensor:
    """`count` random 64-bit integers per key, shape `[*key.shape, count]`."""
    counter = torch.arange(1, count + 1, dtype=torch.int64, device=key.device) * _GAMMA
    return _mix(key.unsqueeze(-1) + counter)


def uniform(key: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`count` uniform numbers in the open interval (0, 1) per key, shape `[*key.shape, count]`."""
    width = 53 if dtype == torch.float64 else 23
    return (_shift(bits(key, count), 64 - width).to(dtype) + 0.5) * 2.0**-width


def normal(key: Tensor, count: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """`count` standard normal numbers per key, shape `[*key.shape, count]`."""
    return math.sqrt(2.0) * torch.erfinv(2.0 * uniform(key, count, dtype) - 1.0)


def permutation(key: Tensor, count: int) -> Tensor:
    """A random permutation of `range(count)` per key, shape `[*key.shape, count]`, int64."""
    return bits(key, count).argsort(dim=-1)


def _mix(z: Tensor) -> Tensor:
    z = (z ^ _shift(z, 30)) * _FIRST
    z = (z ^ _shift(z, 27)) * _SECOND
    return z ^ _shift(z, 31)


def _shift(z: Tensor, by: int) -> Tensor:
    """Logical shift to the right; torch's own keeps the sign."""
    return (z >> by) & ((1 << (64 - by)) - 1)


def _signed(value: int) -> int:
    value &= _INT64
    return value - (1 << 64) if value >> 63 else value
