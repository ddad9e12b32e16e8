"""Inside a network, from outside: the outputs of its modules by name, as maps (batch, channels, height, width)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError


def submodule(network: Any, name: str) -> nn.Module:
    """The module of this name in a network."""
    if not isinstance(network, nn.Module):
        raise InputError(f"the network must be a torch module with named parts, got {type(network).__name__}")
    found = dict(network.named_modules())
    if name not in found or not name:
        known = [key for key in found if key]
        raise InputError(f"the network has no module {name!r}; it has {', '.join(known[:12])}, ...")
    return found[name]


def first(output: Any) -> Tensor:
    """The features among what a module returns: the output itself, or the first of several."""
    found = output[0] if isinstance(output, (tuple, list)) else output
    if not isinstance(found, Tensor):
        raise InputError(f"a module must return a tensor, or a tuple that begins with one; got {type(found).__name__}")
    return found


def to_map(features: Tensor) -> Tensor:
    """Features as a map: (batch, channels, height, width) as they are, tokens (batch, n, channels) as a square."""
    if features.ndim == 4:
        return features
    side = math.isqrt(features.shape[1]) if features.ndim == 3 else 0
    if features.ndim != 3 or side * side != features.shape[1]:
        raise InputError(
            "features must have shape (batch, channels, height, width), or (batch, tokens, channels) with a square "
            f"number of tokens; got {tuple(features.shape)}"
        )
    return features.mT.reshape(len(features), features.shape[2], side, side)


def like(features: Tensor, maps: Tensor) -> Tensor:
    """A map in the form of `features`; the inverse of `to_map`."""
    return maps if features.ndim == 4 else maps.flatten(2).mT


class Taps:
    """Listens to modules of a network inside a `with` block, after which the network is as before.

    Args:
        network: any torch module.
        names: of the modules, as in `named_modules()`.
    """

    def __init__(self, network: Any, names: Sequence[str]) -> None:
        if isinstance(names, str) or not names:
            raise InputError(f"names of modules must be a non-empty sequence, got {names!r}")
        self._modules = [submodule(network, name) for name in names]
        self._heard: dict[int, Tensor] = {}
        self._handles: list[Any] = []

    def __enter__(self) -> Taps:
        for place, module in enumerate(self._modules):
            self._handles.append(
                module.register_forward_hook(lambda m, i, output, place=place: self._hear(place, output))
            )
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()

    def _hear(self, place: int, output: Any) -> None:
        self._heard[place] = first(output)

    def maps(self, size: Sequence[int]) -> Tensor:
        """What was heard in the latest forward pass, resized bilinearly to (height, width), all channels together."""
        if len(self._heard) < len(self._modules):
            raise InputError(f"only {len(self._heard)} of {len(self._modules)} modules took part in the forward pass")
        found = [to_map(self._heard[place]) for place in range(len(self._modules))]
        return torch.cat([_resized(each, tuple(size)) for each in found], dim=1)


def _resized(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    if tuple(maps.shape[-2:]) == size:
        return maps
    return F.interpolate(maps, size=size, mode="bilinear", align_corners=False)
