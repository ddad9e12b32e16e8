"""Kind `unmask`: generating sequences of tokens with a masked diffusion model in few network evaluations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.problem import Instance

D = TypeVar("D", bound="Unmasks")


class Unmasks(Protocol):
    """What sampling needs of a masked model; `hasten.numerics.masked_denoiser.MaskedDenoiser` is the library's own."""

    mask: int
    timed: bool

    def probabilities(self, tokens: Tensor, t: float) -> Tensor:
        """Law of each clean token."""
        ...

    def counted(self: D, count: Callable[[int], Any]) -> D:
        """The same model, reporting its evaluations to `count`."""
        ...


class Unmasking(Instance):
    """A batch of sequences with masks to be filled in. The answer (`state.x`) is the batch in its present state.

    Oracle: the network behind `denoiser`, counted as `nfe`. `horizon` is the number of evaluations to plan with.

    Args:
        denoiser: the masked model; this instance counts its calls.
        start: integers of shape (batch, length); tokens that are not the mask are given and stay.
        metric: distance of a batch of sequences from the goal; not counted. Masks may be left in it.
        rungs: numbers of evaluations to try, increasing.
    """

    kind = "unmask"

    def __init__(
        self,
        denoiser: Unmasks,
        start: Tensor,
        metric: Callable[[Tensor], float],
        rungs: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if start.ndim != 2 or start.numel() == 0 or start.dtype not in (torch.int64, torch.int32):
            raise InputError(
                f"start must hold integer tokens of shape (batch, length), got {tuple(start.shape)} {start.dtype}"
            )
        self.denoiser = denoiser.counted(self._count)
        self.start = start
        self.rungs = tuple(rungs)
        self._metric = metric

    def metric(self, x: Tensor) -> float:
        return float(self._metric(x))

    def _count(self, evaluations: int) -> None:
        self.calls["nfe"] += evaluations
