"""Numbers in 8 bits: blocks of a tensor divided by their largest entry, each entry the nearest of 256 fixed values.

The values ("dynamic map") are spaced evenly within each decade: seven decades, and twice as many values in each as in
the one below. So both directions are piecewise linear. Compiled, they are sums of ramps `relu(x - knee)`, which run as
vector instructions; eagerly, tables take fewer passes over memory.
"""

from __future__ import annotations

import itertools
from functools import cache

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError

BLOCK = 256
DECADES = 7


@cache
def _values(signed: bool, bits: int = 8) -> list[float]:
    """The map in double precision, ascending."""
    decades = bits - 1
    positive = []
    for i in range(decades):
        bins = 2**i if signed else 2 ** (i + 1)
        positive += [(0.1 + (k + 0.5) * 0.9 / bins) * 10.0 ** (i - decades + 1) for k in range(bins)]
    return [*(-value for value in reversed(positive) if signed), 0.0, *positive, 1.0]


def dynamic_map(signed: bool = True, bits: int = 8) -> Tensor:
    """The `2**bits` values that codes stand for, ascending, from -1 (or 0) to 1.

    Args:
        signed: with negative values; otherwise twice as many positive ones.
        bits: from 2 to 8; fewer bits mean fewer decades.
    """
    return torch.tensor(_values(bool(signed), check.integer("bits", bits, 2, 8)), dtype=torch.float64).float()


def zero_code(signed: bool) -> int:
    """The code of 0."""
    return 127 if signed else 0


def blocks(numel: int, block: int) -> int:
    """Number of blocks, the last one perhaps shorter."""
    return -(-numel // block)


def quantize_blockwise(x: Tensor, block: int = BLOCK, signed: bool = True) -> tuple[Tensor, Tensor]:
    """A tensor as codes, and the largest absolute value of each block.

    Args:
        x: real and finite; taken in blocks in the order of its elements.
        block: length of the blocks; the last one may be shorter.
        signed: False for entries of at least zero, which are then stored more finely.

    Returns:
        Codes (uint8, shaped as `x`) and `absmax` (float32, one per block).

    Raises:
        InputError: a tensor that is not real, or negative entries with `signed=False`.
    """
    check.integer("block", block, 1)
    if not x.is_floating_point():
        raise InputError(f"x must be a real floating-point tensor, got {x.dtype}")
    if not signed and bool((x < 0).any()):
        raise InputError("x has negative entries, which signed=False has no codes for; choose signed=True")
    flat = x.detach().reshape(1, -1)
    codes = torch.empty(flat.shape, dtype=torch.uint8, device=x.device)
    absmax = torch.empty(1, blocks(x.numel(), block), dtype=torch.float32, device=x.device)
    encode_(flat, codes, absmax, block, signed)
    return codes.view(x.shape), absmax.view(-1)


def dequantize_blockwise(codes: Tensor, absmax: Tensor, block: int = BLOCK, signed: bool = True) -> Tensor:
    """The float32 tensor that `quantize_blockwise` stored, up to its rounding.

    Raises:
        InputError: codes that are not uint8, or another number of blocks than these codes have.
    """
    check.integer("block", block, 1)
    if codes.dtype != torch.uint8:
        raise InputError(f"codes must be uint8, got {codes.dtype}")
    wanted = blocks(codes.numel(), block)
    if absmax.shape != (wanted,):
        raise InputError(f"absmax must have shape ({wanted},) for {codes.numel()} codes in blocks of {block}")
    out = torch.empty(1, codes.numel(), dtype=torch.float32, device=codes.device)
    decode_(codes.reshape(1, -1), absmax.view(1, -1), out, block, signed)
    return out.view(codes.shape)


def encode_(x: Tensor, codes: Tensor, absmax: Tensor, block: int, signed: bool, lift: bool = False) -> None:
    """Store the rows of `x` (B, n) in `codes` (B, n) and `absmax` (B, blocks), eagerly.

    With `lift`, nothing without sign is rounded down to 0: a step divided by it would have no bound.
    """
    for rows, found, largest in _even(block, x, codes, absmax):
        rows = rows.float()
        torch.amax(rows.abs() if signed else rows, -1, out=largest)
        scaled = rows / torch.where(largest > 0, largest, 1.0).unsqueeze(-1)
        bits = scaled.view(torch.int32)
        upper = (bits >> 16).add_(32768)
        entry = torch.index_select(_edges(signed, x.device), 0, upper.view(-1)).view(bits.shape)
        if signed:
            bits ^= torch.bitwise_right_shift(bits, 31)
        found.copy_(entry.add_(bits.bitwise_and_(0xFFFF)).bitwise_right_shift_(16))
        if lift and not signed:
            found.clamp_(min=1)


def decode_(codes: Tensor, absmax: Tensor, out: Tensor, block: int, signed: bool) -> None:
    """Write what `encode_` stored to `out` (B, n), eagerly."""
    for found, rows, largest in _even(block, codes, out, absmax):
        flat = found.reshape(-1)
        if flat.numel() % 2 or flat.storage_offset() % 2:
            values = torch.index_select(_table(signed, codes.device), 0, flat.int())
        else:
            pairs = torch.index_select(_pairs(signed, codes.device), 0, flat.view(torch.uint16).int())
            values = torch.view_as_real(pairs)
        torch.mul(values.view(found.shape), largest.unsqueeze(-1), out=rows) if rows.dtype == torch.float32 else (
            rows.copy_(values.view(found.shape) * largest.unsqueeze(-1))
        )


def _even(block: int, first: Tensor, second: Tensor, absmax: Tensor) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Views in whole blocks (B, blocks, block) and of the shorter last ones (B, 1, rest)."""
    n = first.shape[1]
    whole = n // block * block
    parts = []
    if whole:
        sizes = (first.shape[0], whole // block, block)
        views = [tensor[:, :whole].unflatten(1, sizes[1:]) for tensor in (first, second)]
        parts.append((views[0], views[1], absmax[:, : sizes[1]]))
    if whole < n:
        parts.append((first[:, None, whole:], second[:, None, whole:], absmax[:, -1:]))
    return parts


@cache
def _table(signed: bool, device: torch.device) -> Tensor:
    return dynamic_map(signed).to(device)


@cache
def _pairs(signed: bool, device: torch.device) -> Tensor:
    """Two values for every two codes side by side in memory (the first in the low byte)."""
    values = dynamic_map(signed)
    return torch.stack([values.repeat(256), values.repeat_interleave(256)], 1).view(torch.complex64).view(-1).to(device)


@cache
def _edges(signed: bool, device: torch.device) -> Tensor:
    """For the upper half of a float's bits: the code of the lowest such float, and where among them the next begins.

    An entry's upper half is that code; its lower half carries into it when the rank of a float among those of its upper
    half is added. No two edges between codes lie among floats of one upper half.
    """
    values = torch.tensor(_values(signed), dtype=torch.float64)
    edges = (values[1:] + values[:-1]) / 2
    upper = torch.arange(-32768, 32768, dtype=torch.int64)

    def floats(upper: Tensor, rank: Tensor) -> Tensor:
        bits = (upper << 16) + torch.where(upper < 0, 0xFFFF - rank, rank)
        return bits.to(torch.int32).view(torch.float32).double().nan_to_num(0.0)

    first, last = (torch.bucketize(floats(upper, torch.tensor(rank)), edges, right=True) for rank in (0, 0xFFFF))
    begins = torch.full_like(upper, 0x10000)
    ranks = torch.arange(0x10000)
    for place in (last > first).nonzero().view(-1).tolist():
        begins[place] = int((floats(upper[place], ranks) < edges[int(first[place])]).sum())
    return ((first << 16) + (0x10000 - begins)).to(torch.int32).to(device)


def encode_fused(x: Tensor, absmax: Tensor, signed: bool, lift: bool = False) -> Tensor:
    """Codes of blocks `x` (blocks, block), in arithmetic that the compiler makes vector instructions of.

    They are those of the nearest values, up to rounding errors of 1e-5 of their distance; `lift` as for `encode_`.
    """
    scaled = x * (1.0 / torch.where(absmax > 0, absmax, 1.0)).unsqueeze(-1)
    size = scaled.abs() if signed else scaled
    (start, slope), knees, _ = _RAMPS[signed]
    code = size * slope + start
    for knee, change in knees:
        code = code - torch.relu(knee - size) * change
    code = code.floor()
    if signed:
        code = torch.relu(torch.copysign(code, scaled) + 127.0)
    elif lift:
        code = torch.relu(code - 1.0) + 1.0
    return torch.where(scaled >= _TOP[signed], 255.0, code).to(torch.uint8)


def decode_fused(codes: Tensor, absmax: Tensor, signed: bool) -> Tensor:
    """The values of codes (blocks, block), for the compiler as `encode_fused`."""
    code = codes.to(torch.float32)
    size = (code - 127.0).abs() if signed else code
    _, _, ((start, slope), *knees) = _RAMPS[signed]
    value = size * slope + start
    for knee, change in knees:
        value = value + torch.relu(size - knee) * change
    value = torch.where(code > 254.5, 1.0, torch.relu(value))
    if signed:
        value = torch.copysign(value, code - 127.0)
    return value * absmax.unsqueeze(-1)


Pairs = tuple[tuple[float, float], ...]


def _ramps(signed: bool) -> tuple[tuple[float, float], Pairs, Pairs]:
    """Both directions as sums of ramps, for absolute values and for codes counted from that of zero.

    Returns:
        The highest line (value at zero, slope) of codes over values, to be rounded down; the ramps to be taken off it,
        (knee, change of slope) from the highest knee on; and values over codes: the lowest line, and the ramps on it.
    """
    values = [value for value in _values(signed) if value >= 0]
    edges = [0.0, *((low + high) / 2 for low, high in itertools.pairwise(values))]
    bins = [2**i if signed else 2 ** (i + 1) for i in range(DECADES)]
    starts = [1 + sum(bins[:i]) for i in range(DECADES)]
    spaces = [0.9 * 10.0 ** (i - DECADES + 1) / bins[i] for i in range(DECADES)]
    # Edge n shall be at height n. Those of a decade are on one line, but for the first; a line of its own leads from
    # there to the second.
    lines = [(edges[1], 1.0, 0.5 / edges[1] if signed else 1.0 / (edges[2] - edges[1]))]
    for start, space in zip(starts[1:], spaces[1:]):
        lines.append((edges[start], float(start), 1.0 / (edges[start + 1] - edges[start])))
        lines.append((edges[start + 1], start + 1.0, 1.0 / space))
    knees = [(_crossing(low, high), low[2] - high[2]) for low, high in itertools.pairwise(lines)]
    x, y, slope = lines[-1]
    back = [(float(start), values[start], space) for start, space in zip(starts, spaces)]
    ramps = [(_crossing(low, high), high[2] - low[2]) for low, high in itertools.pairwise(back)]
    lowest = back[0][1] - back[0][0] * back[0][2], back[0][2]
    return (y - x * slope, slope), tuple(reversed(knees)), (lowest, *ramps)


def _crossing(first: tuple[float, float, float], second: tuple[float, float, float]) -> float:
    """Where two lines (x, y, slope) cross."""
    (x0, y0, s0), (x1, y1, s1) = first, second
    return (y1 - y0 + s0 * x0 - s1 * x1) / (s0 - s1)


# Plain tables, because the compiler does not look into cached functions.
_RAMPS = {signed: _ramps(signed) for signed in (True, False)}
_TOP = {signed: sum(_values(signed)[-2:]) / 2 for signed in (True, False)}
