"""Claims of Jiang et al. 2023: the signal-to-noise ratio holds noise back and leaves the signal its speed."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import nn
from torch.nn import functional as F

from hasten.core.claim import claim
from hasten.core.kinds.train import minibatches
from hasten.optim.filters.gsnr import GSNRFilter
from hasten.problems.digits import digits, mlp

MICRO = 8
NOTE = (
    "f = |x|^2 / 2 in 100 coordinates, one tensor: 10 start at 5, 90 at their optimum; noise of deviation 1 on every "
    "entry of each of 8 micro-batch gradients; SGD with lr 0.05, until the norm of the 10 has halved."
)


@cache
def halved(seed: int, filtered: bool) -> tuple[int, float]:
    """Steps until the signal has halved, and the sum of squares of the other coordinates then."""
    generator = torch.Generator().manual_seed(seed)
    x = nn.Parameter(torch.zeros(100, dtype=torch.float64))
    x.data[:10] = 5.0
    optimizer = torch.optim.SGD([x], lr=0.05)
    gsnr = GSNRFilter(optimizer) if filtered else None
    for step in range(1, 1000):
        grads = x.detach() + torch.randn(MICRO, 100, generator=generator, dtype=torch.float64)
        for grad in grads if gsnr else ():
            x.grad = grad
            gsnr.accumulate()  # type: ignore[union-attr]
        if gsnr is None:
            x.grad = grads.mean(0)
        optimizer.step()
        if x.data[:10].norm() <= 2.5 * math.sqrt(10):
            return step, float(x.data[10:].square().sum())
    return 1000, math.inf


@claim(
    method="optim.gsnr",
    paper_id=99,
    baseline="SGD on the mean of the same micro-batches",
    statement="When the signal has halved, the square of what noise did to the other coordinates is at most 0.4 times.",
    quantity="sum of squares of the noise coordinates when the signal has halved, ratio to SGD",
    threshold=0.4,
    note=NOTE,
)
def noise_is_held_back(seed: int) -> float:
    """Quadratic with signal and noise."""
    return halved(seed, True)[1] / halved(seed, False)[1]


@claim(
    method="optim.gsnr",
    paper_id=99,
    baseline="SGD on the mean of the same micro-batches",
    statement="The signal takes at most 1.1 times the steps to halve.",
    quantity="steps until the signal has halved, ratio to SGD",
    threshold=1.1,
    note=NOTE,
)
def signal_keeps_its_speed(seed: int) -> float:
    """Quadratic with signal and noise."""
    return halved(seed, True)[0] / halved(seed, False)[0]


def generalisation_gap(seed: int, filtered: bool) -> float:
    """Test minus training loss of digits-mlp when the training loss has come to 0.05 (looked at every 5 steps)."""
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:1200], order[1200:]
    torch.manual_seed(seed)
    model = mlp(64, 64, 64, 10)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    gsnr = GSNRFilter(optimizer) if filtered else None
    batches = minibatches((images[train], labels[train]), 64 * MICRO, torch.Generator().manual_seed(seed))
    for step in range(1, 1001):
        inputs, targets = next(batches)
        optimizer.zero_grad()
        if gsnr is None:
            F.cross_entropy(model(inputs), targets).backward()
        else:
            for part, wanted in zip(inputs.split(64), targets.split(64)):
                F.cross_entropy(model(part), wanted).backward()
                gsnr.accumulate()
        optimizer.step()
        if step % 5 == 0:
            with torch.no_grad():
                losses = [F.cross_entropy(model(images[part]), labels[part]).item() for part in (train, test)]
            if losses[0] <= 0.05:
                return losses[1] - losses[0]
    return math.inf


@claim(
    method="optim.gsnr",
    paper_id=99,
    baseline="SGD with momentum on the same large batches",
    statement="At equal training loss on digits, batches of 8 x 64, the generalisation gap is at most 0.95 times.",
    quantity="test minus training loss at a training loss of 0.05, ratio to SGD with momentum",
    threshold=0.95,
    seeds=(0, 1, 2, 3, 4),
    note="MLP 64-64-64-10, 1200 images to train on and 597 to test, lr 0.1, momentum 0.9. The gain is small here; the "
    "paper measures it on ImageNet and BERT with batches of 32k to 128k, where the gap is wide.",
)
def generalisation(seed: int) -> float:
    """digits, 5 seeds."""
    return generalisation_gap(seed, True) / generalisation_gap(seed, False)
