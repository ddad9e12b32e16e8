"""Claims of UDIM (Shin et al. 2024): digits in domains that were not seen in training."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.claim import claim
from hasten.core.kinds.train import minibatches
from hasten.optim.recipes.attacks import accuracy
from hasten.optim.recipes.sam import SAM
from hasten.optim.recipes.udim import UDIM
from hasten.problems.digits import digits

NOTE = (
    "The paper's own claim is about photographs, paintings and sketches (PACS) with a pre-trained ResNet-18; it is not "
    "measured here. On digits only the consistency of gradients is reproduced, not the gain in accuracy."
)
TRAIN, EPOCHS, BATCH = 1437, 15, 64


def rotated(images: Tensor, degrees: float) -> Tensor:
    """Images (n, 64) turned about their centre, bilinear."""
    angle = torch.deg2rad(torch.tensor(degrees))
    turn = torch.tensor([[torch.cos(angle), -torch.sin(angle), 0.0], [torch.sin(angle), torch.cos(angle), 0.0]])
    grid = F.affine_grid(turn.expand(len(images), 2, 3), [len(images), 1, 8, 8], align_corners=False)
    return F.grid_sample(images.view(-1, 1, 8, 8), grid, align_corners=False).flatten(1)


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)),
        nn.Conv2d(1, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


@cache
def trained(method: str, seed: int) -> tuple[float, float]:
    """Mean accuracy on three unseen domains, and inconsistency on the test images, after 15 epochs of Adam."""
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN], order[TRAIN:]
    torch.manual_seed(seed)
    model = network()
    base = torch.optim.Adam(model.parameters(), lr=3e-3)
    judge = UDIM(base, model, model[-1])
    optimizer = {"erm": base, "sam": SAM(base), "udim": judge}[method]
    batches = minibatches((images[train], labels[train]), BATCH, torch.Generator().manual_seed(seed))
    for _ in range(EPOCHS * (TRAIN // BATCH)):
        x, y = next(batches)

        def loss(x: Tensor = x, y: Tensor = y) -> Tensor:
            return F.cross_entropy(model(x), y)

        def backward() -> Tensor:
            base.zero_grad()
            value = loss()
            value.backward()
            return value

        optimizer.step(loss if method == "udim" else backward)  # type: ignore[arg-type]
    shifted = (rotated(images[test], 30.0), rotated(images[test], 45.0), 0.25 + 0.5 * images[test])
    unseen = sum(accuracy(model, domain, labels[test]) for domain in shifted) / len(shifted)

    def on_test() -> Tensor:
        return F.cross_entropy(model(images[test]), labels[test])

    return unseen, float(judge.measure(on_test, judge.worst_inputs(on_test)).detach())


@claim(
    method="optim.udim",
    paper_id=359,
    baseline="SAM with the same base, radius and steps",
    statement="On unseen domains it is at least 1 point more accurate than SAM.",
    quantity="mean accuracy on unseen domains, difference to SAM",
    relation=">=",
    threshold=0.01,
    note=NOTE,
)
def more_accurate_than_sam(seed: int) -> float:
    """Digits turned by 30 and 45 degrees, and of half the contrast; small CNN, 15 epochs of Adam at 3e-3."""
    return trained("udim", seed)[0] - trained("sam", seed)[0]


@claim(
    method="optim.udim",
    paper_id=359,
    baseline="Adam with the same steps",
    statement="On unseen domains it is at least 2 points more accurate than plain training.",
    quantity="mean accuracy on unseen domains, difference to plain training",
    relation=">=",
    threshold=0.02,
    note=NOTE,
)
def more_accurate_than_plain(seed: int) -> float:
    """Digits turned by 30 and 45 degrees, and of half the contrast; small CNN, 15 epochs of Adam at 3e-3."""
    return trained("udim", seed)[0] - trained("erm", seed)[0]


@claim(
    method="optim.udim",
    paper_id=359,
    baseline="SAM with the same base, radius and steps",
    statement="After training, gradients are at most 0.7 times as inconsistent between images and worst-case images.",
    quantity="inconsistency on the test images, ratio to SAM",
    threshold=0.7,
    note=NOTE,
)
def inconsistency(seed: int) -> float:
    """Worst-case images by one step of the inputs of length 1, for each network by itself."""
    return trained("udim", seed)[1] / trained("sam", seed)[1]
