"""Forecasting on ETTh1, the hourly record of an electricity transformer."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.train import training
from hasten.core.problem import Problem
from hasten.problems.data import load
from hasten.problems.evaluate import held_out

TRAIN, VALIDATION = 12 * 30 * 24, 16 * 30 * 24


@cache
def series() -> Tensor:
    """The seven channels (17420, 7), float32, standardised by the first twelve months."""
    x = torch.tensor(load("etth1")["x"])
    return (x - x[:TRAIN].mean(0)) / x[:TRAIN].std(0)


def windows(start: int, end: int, past: int, future: int) -> tuple[Tensor, Tensor]:
    """Pasts (n, 7, past) and futures (n, 7, future) of all windows between two hours; views, not copies."""
    cut = series()[start:end].unfold(0, past + future, 1)
    return cut[..., :past], cut[..., past:]


class Forecaster(nn.Module):
    """Per-channel MLP on the past relative to its last value: (n, channels, past) -> (n, channels, future)."""

    def __init__(self, past: int, future: int, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(past, future)
        self.correction = nn.Sequential(nn.Linear(past, width), nn.GELU(), nn.Linear(width, future))

    def forward(self, x: Tensor) -> Tensor:
        last = x[..., -1:]
        return last + self.linear(x - last) + self.correction(x - last)


@ready("etth1", kind="train")
def etth1(past: int = 96, future: int = 24, width: int = 64, batch: int = 64) -> Problem:
    """Forecasting of ETTh1 (hourly transformer temperatures and loads, downloaded once), per-channel MLP.

    Args:
        past: hours that the network sees.
        future: hours that it forecasts.
        width: hidden units.
        batch: windows per step.
    """
    check.integer("past", past, 1)
    check.integer("future", future, 1)
    check.integer("width", width, 1)
    return training(
        "etth1",
        lambda: Forecaster(past, future, width),
        lambda: windows(0, TRAIN, past, future),
        F.mse_loss,
        batch_size=batch,
        metric=held_out(F.mse_loss, lambda: windows(TRAIN - past, VALIDATION, past, future)),
        measures="validation mean squared error",
        target=0.41,
        budget=500,
        every=20,
        summary=f"{future} hours ahead from {past} hours, seven channels, first twelve months",
    )
