"""Linear decay of the learning rate, and schedules refined from the gradient norms of an earlier run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, schedule
from hasten.optim.schedules.base import Schedule
from hasten.optim.wrapper import StepHook

CARD = Card(
    name="linear-decay",
    family="optim",
    paper_id=415,
    title="When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement",
    authors="Defazio et al.",
    year=2023,
    arxiv="2310.07831",
    summary="Lowers the learning rate linearly to zero over a horizon known in advance; the best worst-case schedule.",
    cost="None.",
    when="The number of steps is known: the last iterate is then as good as an average.",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper})\n"
    "schedule = hasten.optim.LinearDecay(optimizer, total_steps)",
    search_space={"lr": LogReal(1e-4, 1e-1)},
)


@schedule(CARD)
class LinearDecay(Schedule):
    """Linear decay of the learning rate to zero, after an optional linear warm-up; for any optimizer.

        step s < warmup:  (s + 1) / warmup
        later:            (total_steps - s) / (total_steps - warmup),  0 from total_steps on

    For SGD on convex problems with gradients of norm at most `G`, from a start at distance `D`, this schedule with
    `lr = D / (G sqrt(T))` brings the last iterate within `D G / sqrt(T)` of the optimum. Prefer it to cosine and to
    constant rates whenever the number of steps is known.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        total_steps: steps until the rate is zero.
        warmup: steps of warm-up, fewer than `total_steps`.
        last_epoch: steps already taken, -1 for none.

    Cost: none. Source: Defazio et al. (2023), arXiv 2310.07831.
    """

    def __init__(self, optimizer: Optimizer, total_steps: int, warmup: int = 0, last_epoch: int = -1) -> None:
        self.total_steps = check.integer("total_steps", total_steps, 1)
        self.warmup = check.integer("warmup", warmup, 0, total_steps - 1)
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        if step < self.warmup:
            return (step + 1) / self.warmup
        return max(self.total_steps - step, 0) / (self.total_steps - self.warmup)


class RefinedSchedule(Schedule):
    """Learning rate from an array of factors, e.g. that of `refine_schedule`; for any optimizer.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        factors: one factor per step, finite and at least 0; the last one stays in force.
        last_epoch: steps already taken, -1 for none.
    """

    def __init__(self, optimizer: Optimizer, factors: Sequence[float] | np.ndarray, last_epoch: int = -1) -> None:
        array = _vector("factors", factors)
        self.factors: list[float] = array.tolist()
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        return self.factors[min(step, len(self.factors) - 1)]


def refine_schedule(grad_norms: Sequence[float] | np.ndarray, method: str = "sgd", smooth: float = 0.1) -> np.ndarray:
    """Best schedule in the worst case, given the gradient norms of an earlier run.

        G = median filter of the norms;  w = G^-2 (sgd) or G^-1 (adam)
        eta_t = w_t * sum_{p > t} w_p / sum_p w_p,  divided by its maximum

    Constant norms give linear decay; norms that fall at the beginning give a warm-up. The filter is
    `2 * floor(smooth * T / 2) + 1` steps wide; it repeats the first norm before the start and mirrors the norms at
    the end.

    Args:
        grad_norms: norms (T,) in order, T >= 2: l2 for SGD, l1 for Adam, see `GradNormRecorder`. Norms of zero are
            raised to 1e-12 of the median.
        method: `sgd` or `adam`.
        smooth: width of the filter as a share of the run, in [0, 1).

    Returns:
        Factors (T,) in [0, 1] for `RefinedSchedule`; the largest is 1, the last 0.

    Source: Defazio et al. (2023), arXiv 2310.07831.
    """
    norms = _vector("grad_norms", grad_norms)
    check.one_of("method", method, ("sgd", "adam"))
    check.fraction("smooth", smooth)
    if len(norms) < 2:
        raise InputError("grad_norms must hold at least 2 norms: one step has no schedule")
    half = math.floor(smooth * len(norms) / 2)
    padded = np.pad(np.pad(norms, (half, 0), mode="edge"), (0, half), mode="reflect")
    smoothed = np.median(sliding_window_view(padded, 2 * half + 1), axis=1)
    middle = float(np.median(norms)) or float(norms.max())
    if middle == 0:
        raise InputError("grad_norms are all zero: there is nothing to schedule")
    # Relative to the middle, so that neither tiny nor huge norms leave the range of floating point.
    weights = np.maximum(smoothed / middle, 1e-12) ** (-2.0 if method == "sgd" else -1.0)
    after = np.append(np.cumsum(weights[:0:-1])[::-1], 0.0)
    schedule = weights / weights.max() * after
    return schedule / schedule.max()


class GradNormRecorder(StepHook):
    """Records the norm of the whole gradient at every step of any optimizer.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        norm: `l2`, for `refine_schedule(..., method="sgd")`, or `l1`, for `method="adam"`.

    Attributes:
        norms: the norms so far.
    """

    own = ("norms",)

    def __init__(self, optimizer: Optimizer | None = None, norm: str = "l2") -> None:
        self.order = {"l1": 1, "l2": 2}[check.one_of("norm", norm, ("l1", "l2"))]
        self.norms: list[float] = []
        super().__init__(optimizer)

    def on_gradients(self, params: list[Tensor]) -> None:
        parts = [
            torch.linalg.vector_norm(param.grad, self.order).double()  # type: ignore[arg-type]
            for param in params
            if param.numel()
        ]
        self.norms.append(float(torch.linalg.vector_norm(torch.stack(parts), self.order)) if parts else 0.0)


def _vector(name: str, values: Any) -> np.ndarray:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1 or len(array) == 0:
        raise InputError(f"{name} must be a non-empty vector, got shape {array.shape}")
    if not np.isfinite(array).all() or (array < 0).any():
        raise InputError(f"{name} must be finite and at least 0, got {array[~(array >= 0) | ~np.isfinite(array)][0]}")
    return array
