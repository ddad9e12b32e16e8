"""Claims of AMSGrad (Reddi, Kale, Kumar 2018): the online problem on which Adam goes to the worst point."""

from __future__ import annotations

import torch

from hasten.claims.optim.digits import ADAM
from hasten.claims.optim.online import last_iterate
from hasten.core.claim import claim
from hasten.optim.adaptive.amsgrad import AMSGrad

METHOD = "optim.amsgrad"
SCALE = "b1 = 0, b2 = 0.1, lr 0.5/sqrt(t), 9000 steps from 0; with b2 = 0.999 Adam finds the optimum too."


@claim(
    method=METHOD,
    paper_id=194,
    baseline=ADAM,
    statement="On the online problem with slopes 3, -1, -1, ... AMSGrad finds the optimum, -1.",
    quantity="last iterate",
    threshold=-0.95,
    seeds=(0,),
    note=SCALE,
)
def finds_the_optimum(seed: int) -> float:
    """The problem has no randomness."""
    return last_iterate(AMSGrad)


@claim(
    method=METHOD,
    paper_id=194,
    baseline=ADAM,
    statement="On the same problem Adam ends at the worst point, +1.",
    quantity="Adam's last iterate",
    relation=">=",
    threshold=0.9,
    seeds=(0,),
    note=SCALE,
)
def where_adam_fails(seed: int) -> float:
    """The problem has no randomness."""
    return last_iterate(torch.optim.Adam)
