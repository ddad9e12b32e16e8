"""Claims of ADOPT (Taniguchi et al. 2024): the counterexample to Adam, and noisy gradients."""

from __future__ import annotations

import torch

from hasten.claims.optim.digits import ADAM, noisy_loss
from hasten.core.claim import claim
from hasten.optim.adaptive.adopt import ADOPT

SCALE = "The paper's claim is of ImageNet, NVAE, language models and reinforcement learning."


def _online(make: type[torch.optim.Optimizer]) -> float:
    """Where an optimizer with b1 = 0 and b2 = 0.1 ends on the online problem of Reddi, Kale and Kumar (2018).

    On [-1, 1] the gradient is 3 at every third step and -1 at the others, so that -1 is best; 9000 steps of
    lr 0.5/sqrt(t) from 0.
    """
    x = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))
    optimizer = make([x], lr=0.5, betas=(0.0, 0.1))  # type: ignore[call-arg]
    for t in range(1, 9001):
        optimizer.param_groups[0]["lr"] = 0.5 / t**0.5
        x.grad = torch.tensor(3.0 if t % 3 == 1 else -1.0, dtype=torch.float64)
        optimizer.step()
        with torch.no_grad():
            x.clamp_(-1.0, 1.0)
    return x.item()


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
    return _online(ADOPT)


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
    return _online(torch.optim.Adam)
