"""Random draws from one generator, or from one generator per sample so that a sample's noise is its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import InputError

Source = torch.Generator | Sequence[torch.Generator]
"""One generator for a whole batch, or one per sample."""


def standard_normal(like: Tensor, generator: Source) -> Tensor:
    """Standard normal noise of the shape, type and device of `like`, from generators on any device."""
    return normal(like.shape, generator, like.dtype, like.device)


def normal(shape: Sequence[int], generator: Source, dtype: torch.dtype, device: torch.device | str) -> Tensor:
    """Standard normal noise of this shape, drawn where the generators live and moved to `device`.

    With a list of generators, every sample is drawn from its own: the same whatever else is in the batch.
    """
    if isinstance(generator, torch.Generator):
        return torch.randn(*shape, generator=generator, dtype=dtype, device=generator.device).to(device)
    if len(generator) != shape[0]:
        raise InputError(f"generator must hold one generator per sample, got {len(generator)} for {shape[0]} samples")
    return torch.stack([torch.randn(*shape[1:], generator=g, dtype=dtype, device=g.device) for g in generator]).to(
        device
    )


def checked(generator: Any) -> Source:
    """`generator` as a source of noise; torch's global one for None."""
    if generator is None:
        return torch.default_generator
    if isinstance(generator, torch.Generator):
        return generator
    if isinstance(generator, (list, tuple)) and generator and all(isinstance(g, torch.Generator) for g in generator):
        if len({id(g) for g in generator}) < len(generator):
            raise InputError("generator holds the same generator twice; give every sample one of its own")
        return tuple(generator)
    raise InputError(f"generator must be a torch.Generator, or a list of one per sample; got {generator!r}")


def positions(generator: Source) -> list[Tensor]:
    """Where the generators stand, for `rewind`."""
    return [g.get_state() for g in _each(generator)]


def rewind(generator: Source, states: Sequence[Tensor]) -> None:
    """Set the generators back to where `positions` found them."""
    for g, state in zip(_each(generator), states):
        g.set_state(state)


def _each(generator: Source) -> Sequence[torch.Generator]:
    return (generator,) if isinstance(generator, torch.Generator) else generator
