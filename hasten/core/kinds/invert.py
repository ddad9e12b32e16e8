"""Kind `invert`: finding the noise from which a diffusion or flow model generates given data."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.core.problem import Instance


class Inversion(Instance):
    """A batch of clean data whose noise is sought. The answer (`state.x`) is a batch of noise at time T.

    Oracle: the network behind `denoiser`, counted as `nfe`: evaluations per sample. A backward pass through the network
    counts as one more. `horizon` is the number of them that a method may plan with; None leaves it free.

    Args:
        denoiser: the network with its schedule; this instance counts its calls.
        clean: the data at time t_min, shape (batch, ...).
        metric: distance of a batch of noise from the goal; not counted.
        rungs: numbers of evaluations to try, increasing.

    Attributes:
        rounds: calls of the network one after the other, since `calls` was last cleared.
    """

    kind = "invert"

    def __init__(
        self,
        denoiser: Denoises,
        clean: Tensor,
        metric: Callable[[Tensor], float],
        rungs: Sequence[int] = (),
    ) -> None:
        super().__init__()
        if clean.ndim < 2 or len(clean) == 0 or not clean.is_floating_point():
            raise InputError(
                f"the data must be a real batch of shape (batch, ...), got {tuple(clean.shape)} {clean.dtype}"
            )
        if not bool(clean.isfinite().all()):
            raise InputError("the data to invert contain nan or infinity; leave those samples out")
        self.denoiser = denoiser.counted(self.count, len(clean))
        self.schedule = denoiser.schedule
        self.clean = clean
        self.rungs = tuple(rungs)
        self.rounds = 0
        self._metric = metric

    def metric(self, x: Tensor) -> float:
        with torch.no_grad():
            return float(self._metric(x))

    def count(self, evaluations: int) -> None:
        """Add evaluations per sample that were made in one call of the network, or in a backward pass through it."""
        self.rounds = self.rounds + 1 if self.calls else 1
        self.calls["nfe"] += evaluations
