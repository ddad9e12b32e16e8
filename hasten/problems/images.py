"""Image classification on CIFAR-10."""

from __future__ import annotations

from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.train import training
from hasten.core.problem import Problem
from hasten.problems.data import load
from hasten.problems.evaluate import held_out


@cache
def cifar10_part(part: str) -> tuple[Tensor, Tensor]:
    """Images (n, 3, 32, 32), float32, standardised per channel by the training images, and labels (n,), int64."""
    arrays = load("cifar10")
    train = torch.tensor(arrays["x_train"]).float() / 255
    mean, std = train.mean((0, 1, 2)), train.std((0, 1, 2))
    images = train if part == "train" else torch.tensor(arrays[f"x_{part}"]).float() / 255
    return ((images - mean) / std).permute(0, 3, 1, 2).contiguous(), torch.tensor(arrays[f"y_{part}"])


def convnet(width: int) -> nn.Sequential:
    """Three convolutions of stride 2 with batch norm, global average pooling, a linear classifier."""
    layers: list[nn.Module] = []
    for inputs, outputs in ((3, width), (width, 2 * width), (2 * width, 4 * width)):
        layers += [nn.Conv2d(inputs, outputs, 3, 2, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4 * width, 10))


@ready("cifar10", kind="train")
def cifar10(width: int = 32, batch: int = 64) -> Problem:
    """CIFAR-10 (10,000 training and 2,000 test images, downloaded once), small convolutional network.

    Args:
        width: channels of the first convolution; the next ones have two and four times as many.
        batch: images per step.
    """
    check.integer("width", width, 1)
    return training(
        "cifar10",
        lambda: convnet(width),
        partial(cifar10_part, "train"),
        F.cross_entropy,
        batch_size=batch,
        metric=held_out(F.cross_entropy, partial(cifar10_part, "test"), batch_size=500),
        measures="test cross entropy",
        target=1.45,
        budget=500,
        every=25,
        contenders=("optim.adamw", "optim.sgd", "optim.adopt", "optim.lion", "optim.linear-decay"),
        summary="three convolutions with batch norm on 10,000 images of CIFAR-10",
    )
