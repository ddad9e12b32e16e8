"""Claims of teleportation (Zhao et al. 2024): exactness, gain in gradient norm and steps, training of digits."""

from __future__ import annotations

import math
from functools import cache
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.claim import claim
from hasten.core.kinds.train import minibatches
from hasten.optim.averaging.level_set import Jump
from hasten.optim.averaging.teleport import LinearTeleport, Teleporting
from hasten.problems.digits import digits

LIMIT = 12000
RATES = (0.05, 0.1, 0.2, 0.4, 0.8)
PAPER_SCALE = "The paper trains networks of three layers on MNIST, Fashion-MNIST and CIFAR-10."


@cache
def regression(seed: int) -> tuple[list[Tensor], Tensor, Tensor]:
    """Two factors 20x20 with singular values 1 to 0.01, orthogonal inputs and the targets of a linear map, float64."""
    generator = torch.Generator().manual_seed(seed)

    def random() -> Tensor:
        return torch.randn(20, 20, generator=generator, dtype=torch.float64)

    def factor() -> Tensor:
        u, _, vh = torch.linalg.svd(random())
        return u @ torch.diag(torch.logspace(0, -2, 20, dtype=torch.float64)) @ vh

    x = torch.linalg.qr(random()).Q * 20**0.5
    y = random() / 20**0.5 @ x
    return [factor(), factor()], x, y


def loss(weights: list[Tensor], seed: int) -> Tensor:
    """Mean over the inputs of half the squared error."""
    _, x, y = regression(seed)
    return (weights[1] @ weights[0] @ x - y).square().sum(0).mean() / 2


@cache
def jumped(seed: int) -> Jump:
    """Jump until the squared gradient norm has grown six-fold."""
    weights, _, _ = regression(seed)
    start = LinearTeleport(1e-12, 1)(weights, lambda w: loss(w, seed)).grad_norm[0] ** 2
    return LinearTeleport(0.01 / start, 400, cap=6 * start)(weights, lambda w: loss(w, seed))


@cache
def descent(seed: int, teleported: bool, lr: float) -> float:
    """Steps of gradient descent to a loss of 1e-6."""
    start = jumped(seed).weights if teleported else regression(seed)[0]
    weights = [w.clone().requires_grad_() for w in start]
    for step in range(LIMIT):
        value = loss(weights, seed)
        if float(value.detach()) <= 1e-6:
            return step
        if not float(value.detach()) < 1e6:
            break
        with torch.no_grad():
            for w, grad in zip(weights, torch.autograd.grad(value, weights)):
                w -= lr * grad
    return math.inf


@claim(
    method="optim.teleportation",
    paper_id=214,
    baseline="the weights before the jump",
    statement="A jump of a linear network keeps the loss.",
    quantity="relative change of the loss, two layers 20-20-20, float64",
    threshold=1e-8,
    aggregate="max",
)
def linear_jump_keeps_the_loss(seed: int) -> float:
    """Least squares, factors of condition number 100."""
    return jumped(seed).residual


@claim(
    method="optim.teleportation",
    paper_id=214,
    baseline="the weights before the jump",
    statement="A jump of a linear network at least doubles the gradient norm.",
    quantity="gradient norm, ratio",
    relation=">=",
    threshold=2.0,
    aggregate="min",
    note="The jump goes on until the squared norm has grown six-fold.",
)
def linear_jump_raises_the_gradient(seed: int) -> float:
    """Least squares, factors of condition number 100."""
    before, after = jumped(seed).grad_norm
    return after / before


@claim(
    method="optim.teleportation",
    paper_id=214,
    baseline="gradient descent without a jump",
    statement="After the jump, gradient descent at the same rate takes at most 0.7 times the steps.",
    quantity="steps to a loss of 1e-6, ratio",
    threshold=0.7,
    note="A larger gradient comes with a larger curvature: this rate is then beyond stability. " + PAPER_SCALE,
)
def steps_at_equal_rate(seed: int) -> float:
    """Least squares, factors of condition number 100, learning rate 0.1."""
    return descent(seed, True, 0.1) / min(descent(seed, False, 0.1), LIMIT)


@claim(
    method="optim.teleportation",
    paper_id=214,
    baseline="gradient descent without a jump",
    statement="After the jump, gradient descent takes at most 0.7 times the steps, each at its best learning rate.",
    quantity="steps to a loss of 1e-6, ratio",
    threshold=0.7,
    note="A larger gradient comes with a larger curvature, so that the best rate after the jump is lower. "
    + PAPER_SCALE,
)
def steps_at_the_best_rate(seed: int) -> float:
    """Least squares, factors of condition number 100, learning rates 0.05, 0.1, 0.2, 0.4, 0.8."""
    best = [min(descent(seed, teleported, lr) for lr in RATES) for teleported in (True, False)]
    return best[0] / min(best[1], LIMIT)


@cache
def digits_loss(seed: int, jump: bool) -> tuple[float, float]:
    """Full-data loss after 5 epochs of AdaGrad, and the relative change of the loss by the jump."""
    images, labels = digits()
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((64, 64, 64, 10)):
        layers += [nn.Linear(inputs, outputs, bias=False), nn.LeakyReLU(0.1)]
    model = nn.Sequential(*layers[:-1])
    batches = minibatches((images, labels), 64, torch.Generator().manual_seed(seed))
    large = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed + 1000))[:400]
    base = torch.optim.Adagrad(model.parameters(), lr=0.01)
    optimizer = Teleporting(base, model, at_steps=(), jump_lr=0.01, jump_steps=5)
    for step in range(140):
        if jump and step == 14:
            optimizer.jump(lambda: F.cross_entropy(model(images[large]), labels[large]))
        x, y = next(batches)
        optimizer.step(lambda x=x, y=y: F.cross_entropy(model(x), y))
    with torch.no_grad():
        final = float(F.cross_entropy(model(images), labels))
    return final, optimizer.jumps[0].residual if jump else 0.0


@claim(
    method="optim.teleportation",
    paper_id=214,
    baseline="AdaGrad without a jump",
    statement="With one jump in the first epoch, the training loss of digits after 5 epochs is at most 0.9 times as "
    "high.",
    quantity="full-data loss after 5 epochs, ratio",
    threshold=0.9,
    note="Most of the gain is that the sums of AdaGrad begin anew with the jump. " + PAPER_SCALE,
)
def adagrad_on_digits(seed: int) -> float:
    """MLP 64-64-64-10, LeakyReLU 0.1, learning rate 0.01, jump on 400 images in the middle of the first epoch."""
    return digits_loss(seed, True)[0] / digits_loss(seed, False)[0]


@claim(
    method="optim.teleportation",
    paper_id=214,
    baseline="the weights before the jump",
    statement="The jump on digits changes the loss on its batch by at most 1e-4.",
    quantity="relative change of the loss, 400 images, hidden layers of 64 units",
    threshold=1e-4,
    aggregate="max",
    note="Exact only for as many images as units; with more of them small jumps stay close.",
)
def digits_jump_keeps_the_loss(seed: int) -> float:
    """MLP 64-64-64-10, LeakyReLU 0.1, 5 steps of the jump at 0.01."""
    return digits_loss(seed, True)[1]
