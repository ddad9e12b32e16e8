"""Claims of Prieto et al. 2025: OrthoGrad groks without weight decay; StableMax keeps a gradient."""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.claim import claim
from hasten.optim.filters.orthograd import OrthoGrad
from hasten.optim.filters.stablemax import stablemax_cross_entropy

MODULUS = 53
NOTE = (
    "The paper trains larger networks on modulus 113; here an MLP 128-128-53 over a shared embedding of 64 learns "
    "a + b mod 53 from 60 % of the pairs, full batch, AdamW with lr 3e-3 and betas (0.9, 0.98)."
)


class Adder(nn.Module):
    """Maps pairs of numbers below the modulus, embedded alike, to the logits of their sum."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(MODULUS, 64)
        self.layers = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, MODULUS))

    def forward(self, pairs: Tensor) -> Tensor:
        return self.layers(self.embedding(pairs).flatten(1))


def grok(seed: int, orthogonal: bool, weight_decay: float, steps: int, goal: float = 0.9) -> tuple[float, float]:
    """Step at which held-out accuracy is first seen at the goal (a look every 25 steps; inf if never), and its last."""
    pairs = torch.cartesian_prod(torch.arange(MODULUS), torch.arange(MODULUS))
    sums = pairs.sum(1) % MODULUS
    torch.manual_seed(seed)
    order = torch.randperm(len(pairs))
    seen, held_out = order.split([cut := int(0.6 * len(pairs)), len(pairs) - cut])
    model = Adder()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=weight_decay)
    if orthogonal:
        OrthoGrad(optimizer)
    accuracy = 0.0
    for step in range(1, steps + 1):
        optimizer.zero_grad()
        F.cross_entropy(model(pairs[seen]), sums[seen]).backward()
        optimizer.step()
        if step % 25 == 0:
            with torch.no_grad():
                accuracy = float((model(pairs[held_out]).argmax(1) == sums[held_out]).float().mean())
            if accuracy >= goal:
                return step, accuracy
    return math.inf, accuracy


@cache
def steps_with_orthograd(seed: int) -> float:
    """Steps to 90 % with the filter and no weight decay."""
    return grok(seed, orthogonal=True, weight_decay=0.0, steps=1000)[0]


@claim(
    method="optim.orthograd",
    paper_id=378,
    baseline="none",
    statement="On a + b mod 53 without weight decay 90 % of the held-out pairs are right within 1000 steps.",
    quantity="steps to 90 % held-out accuracy",
    threshold=1000,
    aggregate="max",
    note=NOTE,
)
def groks_without_weight_decay(seed: int) -> float:
    """Modular addition with OrthoGrad."""
    return steps_with_orthograd(seed)


@claim(
    method="optim.orthograd",
    paper_id=378,
    baseline="AdamW without the filter and without weight decay, which this describes",
    statement="Without the filter the same training is still below 20 % on the held-out pairs after 5000 steps.",
    quantity="held-out accuracy of AdamW without weight decay after 5000 steps",
    threshold=0.2,
    seeds=(0, 1),
    aggregate="max",
    note=NOTE,
)
def plain_adamw_only_memorises(seed: int) -> float:
    """Modular addition without the filter."""
    return grok(seed, orthogonal=False, weight_decay=0.0, steps=5000)[1]


@claim(
    method="optim.orthograd",
    paper_id=378,
    baseline="AdamW with weight decay 1.0",
    statement="It groks in at most half the steps of AdamW with weight decay 1.0 on a + b mod 53.",
    quantity="steps to 90 % held-out accuracy, ratio to AdamW with weight decay 1.0",
    threshold=0.5,
    note=NOTE,
)
def faster_than_weight_decay(seed: int) -> float:
    """Modular addition: the filter against weight decay."""
    return steps_with_orthograd(seed) / grok(seed, orthogonal=False, weight_decay=1.0, steps=3000)[0]


def large_logits(seed: int) -> tuple[Tensor, Tensor]:
    """Logits of 64 samples that are fitted with a margin, scaled by 1000, and the labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (64,), generator=generator)
    logits = torch.rand(64, 10, generator=generator) + 2 * F.one_hot(labels, 10)
    return (1000 * logits).requires_grad_(), labels


@claim(
    method="optim.orthograd",
    paper_id=378,
    baseline="none; softmax cross entropy in float32 is what this describes",
    statement="Softmax cross entropy of fitted logits scaled by 1000 has exactly zero gradient in float32.",
    quantity="largest entry of the gradient",
    threshold=0.0,
    aggregate="max",
    note="Softmax collapse, the failure that the paper explains: training without weight decay ends here.",
)
def softmax_collapses(seed: int) -> float:
    """Gradient of the usual cross entropy at large logits."""
    logits, labels = large_logits(seed)
    (grad,) = torch.autograd.grad(F.cross_entropy(logits, labels), logits)
    return float(grad.abs().max())


@claim(
    method="optim.orthograd",
    paper_id=378,
    baseline="softmax cross entropy, whose gradient is zero there",
    statement="StableMax cross entropy has a non-zero gradient for every sample and class of the same logits.",
    quantity="share of gradient entries that are not zero",
    threshold=1.0,
    relation=">=",
    aggregate="min",
    note="Logits, and the gradient that reaches them, in float32; StableMax itself computes in double precision.",
)
def stablemax_keeps_a_gradient(seed: int) -> float:
    """Gradient of StableMax cross entropy at large logits."""
    logits, labels = large_logits(seed)
    (grad,) = torch.autograd.grad(stablemax_cross_entropy(logits, labels), logits)
    return float((grad != 0).float().mean())
