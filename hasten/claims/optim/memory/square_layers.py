"""What claims about subspaces measure: steps on `digits-mlp` where only the 64x64 layers are treated."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import nn

import hasten
from hasten.core.registry import entry
from hasten.optim.adapter import OptimizerMethod, Parts

Hyper = tuple[tuple[str, Any], ...]


def groups(parameters: list[nn.Parameter], **rest: Any) -> list[dict[str, Any]]:
    """The 64x64 layers, and all others with the options `rest`."""
    square = [parameter for parameter in parameters if parameter.shape == (64, 64)]
    others = [parameter for parameter in parameters if parameter.shape != (64, 64)]
    return [{"params": square}, {"params": others, **rest}]


@cache
def _steps(method: str, seed: int, hyper: Hyper, rest: Hyper) -> float:
    card = hasten.get(method)

    def assemble(model: nn.Module, horizon: int, options: Mapping[str, Any]) -> Parts:
        return Parts(entry(method).target(groups(list(model.parameters()), **dict(rest)), **options))

    return hasten.run(OptimizerMethod(card, assemble, dict(hyper)), hasten.problem("digits-mlp"), seed).cost_to()


def steps(method: str, seed: int, rest: Mapping[str, Any], **hyper: Any) -> float:
    """Steps to a full-data cross entropy of 0.1, inf if 600 are not enough."""
    return _steps(method, seed, tuple(sorted(hyper.items())), tuple(sorted(rest.items())))


def galore_steps(seed: int, lr: float) -> float:
    """GaLore of rank 16 with a new subspace every 50 steps, nothing scaled."""
    options = {"kind": "svd", "rank": 16, "update_gap": 50, "scale": 1.0}
    return steps("optim.online-subspace", seed, {"rank": None}, lr=lr, **options)


def captured(x: torch.Tensor, kept: torch.Tensor) -> float:
    """Share of the norm of `x` that is left in `kept`."""
    return float(kept.norm() / x.norm()) if float(x.norm()) else math.nan
