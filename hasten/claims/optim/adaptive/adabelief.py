"""Claims of AdaBelief (Zhuang et al. 2020): digits, noisy gradients, and a gradient that never changes."""

from __future__ import annotations

import torch

from hasten.claims.optim.digits import ADAM, best_steps, noisy_loss, ratio
from hasten.core.claim import claim
from hasten.optim.adaptive.adabelief import AdaBelief

METHOD = "optim.adabelief"
SCALE = "Without rectification. The paper's claim is of CIFAR-10, ImageNet and GANs."


@claim(
    method=METHOD,
    paper_id=11,
    baseline=ADAM,
    statement="At the best of four learning rates each, AdaBelief needs no more steps than Adam on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=1.0,
    note=SCALE,
)
def steps_at_best_rate(seed: int) -> float:
    """Digits MLP, learning rates 1e-3, 3e-3, 1e-2, 3e-2."""
    return ratio(best_steps(METHOD, seed, rectify=False), best_steps(ADAM, seed))


@claim(
    method=METHOD,
    paper_id=11,
    baseline=ADAM,
    statement="With gradient noise of 0.05 per entry on digits, the loss after 300 steps is 0.95 times Adam's.",
    quantity="loss after 300 steps at lr 3e-3, ratio to Adam",
    threshold=0.95,
    note=SCALE + " With rectification, the default, the first hundreds of steps are too short for this budget.",
)
def noisy_gradients(seed: int) -> float:
    """Digits MLP, both at lr 3e-3."""
    return noisy_loss(METHOD, seed, rectify=False) / noisy_loss(ADAM, seed)


@claim(
    method=METHOD,
    paper_id=11,
    baseline="a step of lr, which is Adam's",
    statement="A gradient that never changes is believed: the 50th step is more than 3 lr long.",
    quantity="50th step in units of lr",
    relation=">=",
    threshold=3.0,
    seeds=(0,),
    note="In closed form 3.46.",
)
def constant_gradient(seed: int) -> float:
    """The gradient is 1 at every step; there is no randomness."""
    x = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = AdaBelief([x], lr=1e-3, rectify=False)
    before = 0.0
    for _ in range(50):
        before = x.item()
        x.grad = torch.ones_like(x)
        optimizer.step()
    return (before - x.item()) / 1e-3
