"""Compressors that send every entry with a few bits."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.distributed.compressors.base import Codec, Compressor, Payload, State, need_key, payload
from hasten.numerics import keys


@dataclass(frozen=True)
class Sign(Compressor):
    """One bit per entry and the scale |v|_1/d: d/8 + 4 bytes in float32. Contractive, delta = 1/d at worst.

    Source: Karimireddy et al. (2019), arXiv 1901.09847. A zero travels as plus.
    """

    def compress(self, v: Tensor, state: State, key: Tensor | None = None) -> tuple[Payload, State]:
        scale = v.abs().mean(-1, keepdim=True)
        return payload(self, v, {"positive": 1}, positive=(v >= 0).to(torch.uint8), scale=scale), state

    def decompress(self, message: Payload) -> Tensor:
        return message.parts["scale"] * (2.0 * message.parts["positive"].to(message.dtype) - 1.0)

    def delta(self, d: int) -> float:
        return 1.0 / d


@dataclass(frozen=True)
class QSGD(Compressor):
    """Each entry rounded at random to one of `levels` fractions of |v|_2: ceil(log2(2 levels + 1)) bits each + 4 bytes.

    Unbiased, omega = min(d/levels^2, sqrt(d)/levels). Fixed-width codes, no entropy coding.
    Source: Alistarh, Grubic, Li, Tomioka, Vojnovic (2017), arXiv 1610.02132.
    """

    levels: int = 4

    def __post_init__(self) -> None:
        check.integer("levels", self.levels, 1, 1 << 20)

    @property
    def unbiased(self) -> bool:
        return True

    def compress(self, v: Tensor, state: State, key: Tensor | None) -> tuple[Payload, State]:
        norm = torch.linalg.vector_norm(v, dim=-1, keepdim=True)
        noise = keys.uniform(need_key(self, key), v.shape[-1], v.dtype)
        level = (v.abs() * (self.levels / torch.where(norm > 0, norm, 1.0)) + noise).floor().clamp(max=self.levels)
        codes = (torch.sign(v) * level + self.levels).nan_to_num(self.levels).to(torch.int32)
        return payload(self, v, {"codes": (2 * self.levels).bit_length()}, codes=codes, norm=norm), state

    def decompress(self, message: Payload) -> Tensor:
        return message.parts["norm"] * ((message.parts["codes"] - self.levels).to(message.dtype) / self.levels)

    def omega(self, d: int) -> float:
        return min(d / self.levels**2, math.sqrt(d) / self.levels)


@dataclass(frozen=True)
class Ternary(Compressor):
    """Minus one, zero or one, at random, times a scale per tensor: 2 bits per entry and 4 bytes per tensor in float32.

    Per tensor: g <- clamp(g, -c sigma, c sigma) with sigma its standard deviation, s = max|g|,
    t_k = sign(g_k) Bernoulli(|g_k|/s). s t is unbiased for the clamped g. Without clipping omega = (sqrt(d) - 1)/2.
    Source: Wen et al. (2017), arXiv 1705.07878. Tensors of one entry travel raw, those of equal entries unclipped.

    Args:
        clip_sigma: c, 0 for no clipping.
        sizes: lengths of the tensors that make up the vector, one tensor if not given.
        raw: places in `sizes` of tensors to be sent in full precision.
        scale: `max` of the clamped entries, or `sigma` for c sigma as in the authors' code.
    """

    clip_sigma: float = 2.5
    sizes: tuple[int, ...] | None = None
    raw: tuple[int, ...] = ()
    scale: str = "max"

    def __post_init__(self) -> None:
        check.nonnegative("clip_sigma", self.clip_sigma)
        check.one_of("scale", self.scale, ("max", "sigma"))
        if self.scale == "sigma" and self.clip_sigma == 0:
            raise InputError("scale='sigma' needs clipping: set clip_sigma above 0, got 0")

    @property
    def unbiased(self) -> bool:
        return self.clip_sigma == 0

    def clip(self, v: Tensor) -> Tensor:
        """The clamped vector, for which the message is unbiased."""
        cut, sent, sizes = self._layout(v.shape[-1])
        if not sizes or not self.clip_sigma:
            return v
        return _merge(v, cut, torch.cat([self._clip(t)[0] for t in _take(v, cut).split(sizes, -1)], -1), sent)

    def scales(self, v: Tensor) -> Tensor:
        """The scale of each tensor that is not raw, `[..., tensors]`; workers may agree on the largest first."""
        cut, _, sizes = self._layout(v.shape[-1])
        pairs = [self._clip(tensor) for tensor in _take(v, cut).split(sizes, -1)] if sizes else []
        columns = [bound if self.scale == "sigma" else inside.abs().amax(-1, keepdim=True) for inside, bound in pairs]
        return torch.cat(columns, -1) if columns else v[..., :0]

    def compress(self, v: Tensor, state: State, key: Tensor | None) -> tuple[Payload, State]:
        """As the base; `state["scale"]` (`[..., tensors]`) overrides the vector's own scales."""
        cut, sent, _ = self._layout(v.shape[-1])
        scale = state["scale"] if "scale" in state else self.scales(v)
        g = _take(self.clip(v), cut)
        noise = keys.uniform(need_key(self, key), len(cut), v.dtype)
        codes = ternarise(g, self._spread(scale, v.shape[-1]), noise) + 1
        parts = {"codes": codes, "scale": scale, "raw": v[..., sent]}
        return payload(self, v, {"codes": 2}, **{name: part for name, part in parts.items() if part.shape[-1]}), state

    def decompress(self, message: Payload) -> Tensor:
        parts, d = message.parts, message.dim
        cut, sent, _ = self._layout(d)
        if not len(cut):
            return parts["raw"]
        values = (parts["codes"].to(message.dtype) - 1.0) * self._spread(parts["scale"], d)
        return _merge(parts.get("raw"), cut, values, sent)

    def omega(self, d: int) -> float | None:
        return (math.sqrt(max(self.sizes or (d,))) - 1.0) / 2.0 if self.unbiased else None

    def _clip(self, tensor: Tensor) -> tuple[Tensor, Tensor]:
        """The clamped tensor and the bound, the largest magnitude where nothing is to be clamped."""
        top = tensor.abs().amax(-1, keepdim=True)
        if not self.clip_sigma:
            return tensor, top
        sigma = (tensor - tensor.mean(-1, keepdim=True)).square().mean(-1, keepdim=True).sqrt()
        bound = torch.where(sigma > 0, self.clip_sigma * sigma, top)
        return torch.minimum(torch.maximum(tensor, -bound), bound), bound

    def _layout(self, d: int) -> tuple[Tensor, Tensor, list[int]]:
        """Places of the entries to be ternarised, of those to be sent raw, and the lengths of the former's tensors."""
        sizes = self.sizes or (d,)
        if sum(sizes) != d:
            raise InputError(f"sizes must add up to the vector's length {d}, got {sizes} = {sum(sizes)}")
        return _layout(sizes, self.raw)

    def _spread(self, scale: Tensor, d: int) -> Tensor:
        sizes = torch.tensor(self._layout(d)[2], dtype=torch.int64)
        return scale.index_select(-1, torch.arange(len(sizes)).repeat_interleave(sizes).to(scale.device))


@dataclass(frozen=True)
class TernarySum(Codec):
    """The sum of `n` ternary messages under one scale: integers in [-n, n], ceil(log2(2n+1)) bits each.

    Reads as the mean of the messages. The scales come with the object but not over the wire: all have agreed on them.
    """

    codec: Ternary
    n: int

    def add(self, messages: Payload) -> Payload:
        """The answer to `n` stacked messages."""
        cut, sent, _ = self.codec._layout(messages.dim)
        parts, widths = {}, []
        if len(cut):
            sums = messages.parts["codes"].to(torch.int32).sum(0)
            parts |= {"sums": sums, "scale": messages.parts["scale"][0]}
            widths.append(("sums", (2 * self.n).bit_length()))
        if len(sent):
            parts["raw"] = messages.parts["raw"].mean(0)
            widths.append(("raw", 8 * parts["raw"].element_size()))
        return Payload(parts, tuple(widths), self, messages.dim, messages.dtype)

    def decompress(self, message: Payload) -> Tensor:
        parts, d = message.parts, message.dim
        cut, sent, _ = self.codec._layout(d)
        if not len(cut):
            return parts["raw"]
        sums = (parts["sums"] - self.n).to(message.dtype)
        return _merge(parts.get("raw"), cut, sums * (self.codec._spread(parts["scale"], d) / self.n), sent)


def ternarise(g: Tensor, scale: Tensor, noise: Tensor) -> Tensor:
    """sign(g) Bernoulli(|g|/scale) as -1, 0 or 1 (int8), given uniform noise; zeros where the scale is zero."""
    return torch.where(noise * scale < g.abs(), torch.sign(g), 0.0).to(torch.int8)


@cache
def _layout(sizes: tuple[int, ...], raw: tuple[int, ...]) -> tuple[Tensor, Tensor, list[int]]:
    flags = torch.tensor([place in raw or size == 1 for place, size in enumerate(sizes)])
    full = flags.repeat_interleave(torch.tensor(sizes))
    lengths = [size for size, flag in zip(sizes, flags.tolist()) if not flag]
    return (~full).nonzero()[:, 0], full.nonzero()[:, 0], lengths


def _take(v: Tensor, places: Tensor) -> Tensor:
    return v if len(places) == v.shape[-1] else v[..., places]


def _merge(raw: Tensor | None, cut: Tensor, values: Tensor, sent: Tensor) -> Tensor:
    """The vector with `values` at the places `cut` and, at the places `sent`, those entries or that vector's."""
    if raw is None or not len(sent):
        return values
    d = len(cut) + len(sent)
    out = torch.zeros(d, dtype=values.dtype, device=values.device).expand(*values.shape[:-1], d)
    return out.index_copy(-1, cut, values).index_copy(-1, sent, raw if raw.shape[-1] == len(sent) else raw[..., sent])
