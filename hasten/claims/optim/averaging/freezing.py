"""Claims of GradES (Wen et al. 2025): work avoided in fine-tuning at no loss of accuracy, without validation."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.claim import claim
from hasten.core.kinds.train import minibatches
from hasten.optim.averaging.freezing import GradientEarlyStopping
from hasten.problems.digits import digits, mlp

STEPS = 1500
PAPER_SCALE = "The paper fine-tunes language models of up to 14B parameters, 1.57 to 7.22 times faster."


def pretrained(seed: int) -> tuple[nn.Module, Any, tuple[Tensor, Tensor]]:
    """Six layers trained on the digits 0 to 4, batches of all ten from 1,200 images, and the other 597 images."""
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + 1000))
    train, test = order[:1200], order[1200:]
    torch.manual_seed(seed)
    model = mlp(64, 64, 64, 64, 64, 64, 10)
    few = train[labels[train] < 5]
    batches = minibatches((images[few], labels[few]), 64, torch.Generator().manual_seed(seed))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    for _ in range(200):
        learn(model, optimizer, next(batches))
    source = torch.Generator().manual_seed(seed + 1)
    return model, minibatches((images[train], labels[train]), 64, source), (images[test], labels[test])


def learn(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Any) -> None:
    """One step."""
    optimizer.zero_grad()
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    optimizer.step()


@cache
def fine_tuned(seed: int, early: bool) -> tuple[float, float]:
    """Test accuracy in percent, and the share of the matrices' gradient work that was avoided."""
    model, batches, (images, labels) = pretrained(seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    stopping = GradientEarlyStopping(optimizer, total_steps=STEPS, tau=0.1, alpha=0.3, relative=True)
    if not early:
        stopping.remove()
    work = 0
    for _ in range(STEPS):
        work += sum(param.numel() for param in stopping.tracked if param.requires_grad)
        learn(model, optimizer, next(batches))
        if stopping.should_stop:
            break
    with torch.no_grad():
        accuracy = 100 * float((model(images).argmax(1) == labels).float().mean())
    return accuracy, 1 - work / (STEPS * sum(param.numel() for param in stopping.tracked))


@claim(
    method="optim.grades",
    paper_id=179,
    baseline="full fine-tuning",
    statement="Freezing by the gradient avoids at least a quarter of the matrix-gradient products, without validation.",
    quantity="share of the products of all steps, weighted by the size of the matrix",
    relation=">=",
    threshold=0.25,
    note=PAPER_SCALE,
)
def work_avoided(seed: int) -> float:
    """MLP of six layers, from digits 0-4 to all ten, Adam, 1,500 steps, tau 0.1 of the value at 30%."""
    return fine_tuned(seed, True)[1]


@claim(
    method="optim.grades",
    paper_id=179,
    baseline="full fine-tuning",
    statement="With freezing by the gradient the test accuracy is at most half a point lower, on every seed.",
    quantity="test accuracy, points above full fine-tuning",
    relation=">=",
    threshold=-0.5,
    aggregate="min",
    note="Two seeds lose three of the 597 test images, which is 0.5025 points. " + PAPER_SCALE,
)
def accuracy_kept(seed: int) -> float:
    """MLP of six layers, from digits 0-4 to all ten, Adam, 1,500 steps, tau 0.1 of the value at 30%."""
    return fine_tuned(seed, True)[0] - fine_tuned(seed, False)[0]


@claim(
    method="optim.grades",
    paper_id=179,
    baseline="the same layer with full gradients",
    statement="Of two equal layers the one whose gradients are scaled down is frozen first.",
    quantity="steps by which it is earlier",
    relation=">=",
    threshold=1.0,
    aggregate="min",
)
def smaller_gradients_freeze_first(seed: int) -> float:
    """Two matrices with the same gradients, falling as 1/t; those of one divided by 5."""
    generator = torch.Generator().manual_seed(seed)
    params = [nn.Parameter(torch.zeros(4, 4)) for _ in range(2)]
    optimizer = torch.optim.Adam(params)
    stopping = GradientEarlyStopping(optimizer, total_steps=100, tau=0.2, alpha=0.0)
    for t in range(1, 101):
        drawn = torch.randn(4, 4, generator=generator) / t
        for param, scale in zip(params, (1.0, 0.2)):
            param.grad = scale * drawn if param.requires_grad else None
        optimizer.step()
    first, second = (stopping.state[param].get("frozen", 101) for param in params)
    return float(first - second)
