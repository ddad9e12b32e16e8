"""What forward-only methods share: repeatable evaluations of a loss, random directions from a seed, undone moves."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.optim.layout import real, work_dtype


class RandomState:
    """The state of PyTorch's own generators, on the CPU and on the devices of these tensors."""

    def __init__(self, tensors: Iterable[Tensor]) -> None:
        self.devices = sorted({tensor.device.index or 0 for tensor in tensors if tensor.device.type == "cuda"})
        self.states = self._read()

    def restore(self) -> None:
        """Put the generators where they were."""
        torch.set_rng_state(self.states[0])
        for device, state in zip(self.devices, self.states[1:]):
            torch.cuda.set_rng_state(state, device)

    def _read(self) -> list[Tensor]:
        return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in self.devices)]


class Loss:
    """A closure that returns a loss, evaluated without a graph and with the same random numbers every time.

    So dropout, and a batch drawn inside the closure, stay the same while the parameters are moved.

    Attributes:
        count: evaluations so far.
    """

    def __init__(self, closure: Any, params: Sequence[Tensor], user: str) -> None:
        if not callable(closure):
            raise InputError(
                f"{user}.step needs a closure that returns the loss (without backward): it is evaluated at moved "
                f"parameters; got {closure!r}"
            )
        self._closure: Callable[[], Any] = closure
        self._params = params
        self._random: RandomState | None = None
        self.count = 0

    def __call__(self) -> float:
        if self._random is None:
            self._random = RandomState(self._params)
        else:
            self._random.restore()
        self.count += 1
        with torch.no_grad():
            value = self._closure()
        try:
            return float(value)
        except (TypeError, ValueError, RuntimeError):
            raise InputError(f"the closure must return the loss as one number, got {value!r}") from None


def normals(params: Iterable[Tensor], *seed: int) -> Iterator[Tensor]:
    """One standard normal tensor per parameter, in order; the same ones for the same seed.

    They are made one by one, so no more than one is in memory. Complex parameters count as pairs of reals, and
    half-precision ones get normals in float32.
    """
    draw = source(*seed)
    return (draw(param) for param in params)


def source(*seed: int) -> Callable[[Tensor], Tensor]:
    """A function that draws standard normal tensors, each like the tensor that it is given."""
    mixed = 0
    for part in seed:
        mixed = (mixed * 1_000_003 + part + 1) % 2**63
    generators: dict[torch.device, torch.Generator] = {}

    def draw(like: Tensor) -> Tensor:
        if like.device not in generators:
            generators[like.device] = torch.Generator(like.device).manual_seed(mixed)
        shape, dtype = real(like).shape, work_dtype(like.dtype)
        return torch.randn(shape, generator=generators[like.device], dtype=dtype, device=like.device)

    return draw


def move_(params: Iterable[Tensor], directions: Iterable[Tensor], scale: float) -> None:
    """`p <- p + scale * direction`, one tensor at a time."""
    for param, direction in zip(params, directions):
        real(param.detach()).add_(direction.to(real(param).dtype), alpha=scale)


@contextmanager
def undone(params: Sequence[Tensor]) -> Iterator[Callable[[], None]]:
    """Whatever is done to the parameters inside is undone exactly at the end, also by an error.

    Yields a function that undoes it in between. Costs a copy of the parameters.
    """
    kept = [param.detach().clone() for param in params]

    def undo() -> None:
        with torch.no_grad():
            for param, old in zip(params, kept):
                param.copy_(old)

    try:
        yield undo
    finally:
        undo()
