"""Claims of AdaBound (Luo et al. 2019): its two limits, the counterexample to Adam, and digits."""

from __future__ import annotations

from typing import Any

import torch

import hasten
from hasten.claims.optim.digits import ADAM, best_steps, ratio
from hasten.claims.optim.online import last_iterate
from hasten.core.claim import claim
from hasten.core.kinds.train import Training
from hasten.optim.adaptive.adabound import AdaBound

METHOD = "optim.adabound"
LIMIT = "On digits; gamma is set to the limit past the range that the constructor accepts."


def _way(seed: int, make: type[torch.optim.Optimizer], **hyper: Any) -> torch.Tensor:
    """From where the weights of the digits MLP start to where they are after 100 steps; `gamma` is set unchecked."""
    instance = hasten.problem("digits-mlp").build(seed)
    assert isinstance(instance, Training)
    start = torch.cat([parameter.detach().flatten() for parameter in instance.parameters])
    unchecked = {"gamma": hyper.pop("gamma")} if "gamma" in hyper else {}
    optimizer = make(instance.parameters, **hyper)
    optimizer.param_groups[0].update(unchecked)
    for _ in range(100):
        instance.gradient()
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in instance.parameters]) - start


def _difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@claim(
    method=METHOD,
    paper_id=243,
    baseline="optim.sgd",
    statement="With bounds that close at once (gamma 1e6) it is SGD with momentum.",
    quantity="relative difference of the way gone in 100 steps",
    threshold=1e-4,
    note=LIMIT,
)
def becomes_sgd(seed: int) -> float:
    """Digits MLP, final_lr 0.1; PyTorch's momentum is a sum, 1 / (1 - b1) times the average."""
    ours = _way(seed, AdaBound, gamma=1e6, final_lr=0.1)
    return _difference(ours, _way(seed, torch.optim.SGD, lr=0.1 * (1 - 0.9), momentum=0.9))


@claim(
    method=METHOD,
    paper_id=243,
    baseline=ADAM,
    statement="With bounds that never close (gamma 1e-12) it is Adam.",
    quantity="relative difference of the way gone in 100 steps",
    threshold=1e-4,
    note=LIMIT + " Both with eps 1e-20, because it adds eps before the bias correction and Adam after it.",
)
def begins_as_adam(seed: int) -> float:
    """Digits MLP, lr 1e-3."""
    ours = _way(seed, AdaBound, gamma=1e-12, lr=1e-3, eps=1e-20)
    return _difference(ours, _way(seed, torch.optim.Adam, lr=1e-3, eps=1e-20))


@claim(
    method=METHOD,
    paper_id=243,
    baseline=ADAM,
    statement="It finds the optimum -1 of the online problem on which Adam goes to +1.",
    quantity="last iterate",
    threshold=-0.95,
    seeds=(0,),
    note="b1 = 0, b2 = 0.1, lr 0.5/sqrt(t), final_lr 0.1, 9000 steps from 0.",
)
def finds_the_optimum(seed: int) -> float:
    """The problem has no randomness."""
    return last_iterate(AdaBound, final_lr=0.1)


@claim(
    method=METHOD,
    paper_id=243,
    baseline=ADAM,
    statement="At the best of four learning rates each, it needs no more steps than Adam on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=1.0,
    note="Its claim of SGD's accuracy is of CIFAR-10 and Penn Treebank.",
)
def steps_at_best_rate(seed: int) -> float:
    """Digits MLP, learning rates 1e-3, 3e-3, 1e-2, 3e-2."""
    return ratio(best_steps(METHOD, seed), best_steps(ADAM, seed))
