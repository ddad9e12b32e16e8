"""Handwritten digits: the scikit-learn set (1,797 images of 8x8 pixels), which needs no download."""

from __future__ import annotations

from functools import cache
from itertools import pairwise

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.train import training
from hasten.core.problem import Problem


@cache
def digits() -> tuple[Tensor, Tensor]:
    """Images (1797, 64), float32 in [0, 1], and labels (1797,), int64."""
    bunch = load_digits()
    images = torch.tensor(bunch.data, dtype=torch.float32) / 16  # type: ignore[attr-defined]
    return images, torch.tensor(bunch.target, dtype=torch.int64)  # type: ignore[attr-defined]


def mlp(*widths: int) -> nn.Sequential:
    """Fully connected ReLU network through these widths."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


FIELD = (
    "optim.adamw", "optim.sgd", "optim.nadam", "optim.adopt", "optim.adabelief", "optim.ademamix", "optim.lion",
    "optim.ano", "optim.adafactor", "optim.came", "optim.conda", "optim.snsm", "optim.dog", "optim.linear-decay",
    "optim.lawa", "optim.grokfast",
)  # fmt: skip
"""Who races by default: some of every sort of optimizer, so that a first race is over in a minute."""


@ready("digits-mlp", kind="train")
def digits_mlp(width: int = 64, depth: int = 2, batch: int = 64) -> Problem:
    """Handwritten digits (scikit-learn), MLP 64-64-64-10: steps to a full-data cross entropy of 0.1.

    Args:
        width: units of each hidden layer.
        depth: number of hidden layers.
        batch: images per step.
    """
    check.integer("width", width, 1)
    check.integer("depth", depth, 0)
    return training(
        "digits-mlp",
        lambda: mlp(64, *[width] * depth, 10),
        digits,
        F.cross_entropy,
        batch_size=batch,
        measures="cross entropy on all images",
        target=0.1,
        budget=600,
        every=5,
        contenders=FIELD,
        summary=f"MLP 64-{f'{width}-' * depth}10 with ReLU on the 1,797 digits of scikit-learn",
    )


def small_cnn(channels: int) -> nn.Sequential:
    """Two convolutions, batch norm, a linear classifier for 8x8 images that come as 64 numbers."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, channels, 3, padding=1),
        nn.BatchNorm2d(channels),
        nn.ReLU(),
        nn.Conv2d(channels, 2 * channels, 3, stride=2, padding=1),
        nn.BatchNorm2d(2 * channels),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(2 * channels * 16, 10),
    )


@ready("digits-cnn", kind="train")
def digits_cnn(channels: int = 8, batch: int = 64) -> Problem:
    """Handwritten digits (scikit-learn), small convolutional network with batch norm.

    Args:
        channels: channels of the first convolution; the second has twice as many.
        batch: images per step.
    """
    check.integer("channels", channels, 1)
    return training(
        "digits-cnn",
        lambda: small_cnn(channels),
        digits,
        F.cross_entropy,
        batch_size=batch,
        measures="cross entropy on all images",
        target=0.02,
        budget=300,
        every=5,
        summary="two convolutions with batch norm on the 1,797 digits of scikit-learn",
    )
