"""Claims of DeepZero (Chen et al. 2024) on a network 64-16-10 (1210 weights) for handwritten digits."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.claim import claim
from hasten.core.kinds.train import minibatches
from hasten.optim.zeroth_order.deepzero import DeepZero, cge, rge
from hasten.problems.digits import digits, mlp

SCALE = "The paper's own claim, 86.94 % on CIFAR-10 with ResNet-20 by forward passes only, needs days on GPUs."
LENGTH = SCALE + (
    " Differences of length 1e-3: at the published 5e-3 the kinks of ReLU leave a cosine of 0.997 to 0.9995 and an "
    "error ratio of 0.03 to 0.07 on this small network."
)
EPOCHS, BATCH, TRAIN = 15, 64, 1437


def network(seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    return mlp(64, 16, 10)


def flat(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


@cache
def estimates(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """True gradient, CGE and unbiased RGE (normal directions), with 1210 directions each, on one batch of 64."""
    model = network(seed)
    params = list(model.parameters())
    inputs, labels = digits()
    batch = torch.randperm(len(inputs), generator=torch.Generator().manual_seed(seed))[:BATCH]

    def loss() -> Tensor:
        return F.cross_entropy(model(inputs[batch]), labels[batch])

    true = flat(list(torch.autograd.grad(loss(), params)))
    random = rge(loss, params, q=len(true), mu=1e-3, unit=False, seed=seed)
    return true, flat(cge(loss, params, mu=1e-3)), flat(random)


@claim(
    method="optim.deepzero",
    paper_id=406,
    baseline="the gradient by backpropagation",
    statement="The coordinate-wise estimate points along the true gradient: cosine at least 0.999.",
    quantity="cosine between CGE and the true gradient",
    relation=">=",
    threshold=0.999,
    note=LENGTH,
)
def coordinate_estimate_is_the_gradient(seed: int) -> float:
    """One batch at the random start, mu 1e-3."""
    true, coordinate, _ = estimates(seed)
    return float(F.cosine_similarity(true, coordinate, dim=0))


@claim(
    method="optim.deepzero",
    paper_id=406,
    baseline="the gradient by backpropagation",
    statement="With as many evaluations, random directions reach a cosine of at most 0.8.",
    quantity="cosine between RGE with 1210 normal directions and the true gradient",
    threshold=0.8,
    note=LENGTH,
)
def random_estimate_is_not(seed: int) -> float:
    """One batch at the random start, mu 1e-3."""
    true, _, random = estimates(seed)
    return float(F.cosine_similarity(true, random, dim=0))


@claim(
    method="optim.deepzero",
    paper_id=406,
    baseline="RGE with as many evaluations",
    statement="The relative error of CGE is at most a twentieth of that of RGE with as many evaluations.",
    quantity="relative error of CGE, ratio to RGE",
    threshold=0.05,
    note=LENGTH,
)
def error_ratio(seed: int) -> float:
    """One batch at the random start, mu 1e-3, 1210 directions each."""
    true, coordinate, random = estimates(seed)
    return float((coordinate - true).norm() / (random - true).norm())


@claim(
    method="optim.deepzero",
    paper_id=406,
    baseline="SGD on gradients by backpropagation",
    statement="SGD on coordinate-wise estimates follows first-order SGD: losses within 2 % for 50 steps.",
    quantity="largest relative difference of the batch losses over 50 steps",
    threshold=0.02,
    aggregate="max",
    note=SCALE,
)
def follows_first_order(seed: int) -> float:
    """Batches of 64, learning rate 0.1, no momentum, no mask, mu 5e-3."""
    curves = []
    for forward_only in (False, True):
        model = network(seed)
        base = torch.optim.SGD(model.parameters(), lr=0.1)
        optimizer = DeepZero(base, model, sparsity=0.0) if forward_only else base
        batches = minibatches(digits(), BATCH, torch.Generator().manual_seed(seed))
        curves.append([train_step(model, optimizer, *next(batches)) for _ in range(50)])
    return max(abs(ours / theirs - 1) for theirs, ours in zip(*curves))


def train_step(model: nn.Module, optimizer: torch.optim.Optimizer, inputs: Tensor, labels: Tensor) -> float:
    """One step; the loss before it."""
    if isinstance(optimizer, DeepZero):
        return float(optimizer.step(lambda: F.cross_entropy(model(inputs), labels)))
    optimizer.zero_grad()
    loss = F.cross_entropy(model(inputs), labels)
    loss.backward()
    optimizer.step()
    return float(loss.detach())


@cache
def sparse_run(seed: int) -> tuple[float, float]:
    """Test accuracy after 15 epochs at sparsity 0.9, and evaluations over those of dense estimates."""
    images, labels = digits()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    train, test = order[:TRAIN], order[TRAIN:]
    model = network(seed)
    per_epoch = TRAIN // BATCH
    base = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer = DeepZero(base, model, sparsity=0.9, mask_every=per_epoch, seed=seed)
    batches = minibatches((images[train], labels[train]), BATCH, torch.Generator().manual_seed(seed))
    for _ in range(EPOCHS * per_epoch):
        train_step(model, optimizer, *next(batches))
    with torch.no_grad():
        accuracy = float((model(images[test]).argmax(1) == labels[test]).double().mean())
    dense = sum(param.numel() for param in model.parameters()) + 1
    return accuracy, optimizer.queries / (optimizer.steps * dense)


@claim(
    method="optim.deepzero",
    paper_id=406,
    baseline="dense estimates at equal epochs",
    statement="With nine tenths of the entries masked, training by forward passes alone is at least 85 % accurate.",
    quantity="test accuracy",
    relation=">=",
    threshold=0.85,
    note=SCALE,
)
def sparse_accuracy(seed: int) -> float:
    """1437 training images, 360 test images, 15 epochs, learning rate 0.1, momentum 0.9."""
    return sparse_run(seed)[0]


@claim(
    method="optim.deepzero",
    paper_id=406,
    baseline="dense estimates at equal epochs",
    statement="With nine tenths of the entries masked, at most 0.15 times the evaluations are needed.",
    quantity="evaluations of the loss, ratio to dense estimates",
    threshold=0.15,
    note=SCALE,
)
def sparse_queries(seed: int) -> float:
    """15 epochs, the evaluations for the ZO-GraSP scores included."""
    return sparse_run(seed)[1]
