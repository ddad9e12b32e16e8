"""Claims of ADOPT (Taniguchi et al. 2024): the counterexample to Adam, and noisy gradients."""

from __future__ import annotations

import torch

from hasten.claims.optim.digits import ADAM, noisy_loss
from hasten.claims.optim.online import last_iterate
from hasten.core.claim import claim
from hasten.optim.adaptive.adopt import ADOPT

SCALE = "The paper's claim is of ImageNet, NVAE, language models and reinforcement learning."


@claim(
    method="optim.adopt",
    paper_id=184,
    baseline=ADAM,
    statement="With gradient noise of 0.05 per entry on digits, ADOPT's loss after 300 steps is 0.7 times Adam's.",
    quantity="loss after 300 steps at lr 3e-3, ratio to Adam",
    threshold=0.7,
    note=SCALE,
)
def noisy_gradients(seed: int) -> float:
    """Digits MLP, both at lr 3e-3 and their own defaults."""
    return noisy_loss("optim.adopt", seed) / noisy_loss(ADAM, seed)


@claim(
    method="optim.adopt",
    paper_id=184,
    baseline=ADAM,
    statement="With b2 = 0.1 ADOPT finds the optimum -1 of the problem on which Adam goes to +1.",
    quantity="last iterate",
    threshold=-0.95,
    seeds=(0,),
)
def converges_with_any_beta2(seed: int) -> float:
    """The problem has no randomness."""
    return last_iterate(ADOPT)


@claim(
    method="optim.adopt",
    paper_id=184,
    baseline=ADAM,
    statement="On the same problem Adam with b2 = 0.1 ends at the worst point, +1.",
    quantity="Adam's last iterate",
    relation=">=",
    threshold=0.9,
    seeds=(0,),
)
def where_adam_fails(seed: int) -> float:
    """The problem has no randomness."""
    return last_iterate(torch.optim.Adam)
