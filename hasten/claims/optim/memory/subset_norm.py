"""Claims of subset-norm and subspace-momentum (Nguyen, Nguyen 2025): steps and memory against Adam."""

from __future__ import annotations

from typing import Any

from hasten.claims.optim.digits import ADAM, ratio, state_ratio
from hasten.claims.optim.digits import steps as plain_steps
from hasten.claims.optim.memory.square_layers import steps
from hasten.core.claim import claim
from hasten.optim.memory.subset_norm import SNSM

METHOD = "optim.snsm"
RATE = 1e-2
FULL: dict[str, Any] = {"second_moment": "full", "momentum": "full", "lr": RATE}


def _own_steps(seed: int, **hyper: Any) -> float:
    """Ten times Adam's learning rate on the 64x64 layers, Adam on the others."""
    return steps(METHOD, seed, FULL, lr=10 * RATE, **hyper)


@claim(
    method=METHOD,
    paper_id=69,
    baseline=ADAM,
    statement="With one second moment per row it needs 1.1 times Adam's steps or fewer on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=1.1,
    note="Momentum is full. Learning rate 0.1 on the 64x64 layers, 0.01 on the others and for Adam.",
)
def subset_norm_steps(seed: int) -> float:
    """Digits MLP; only the 64x64 layers are treated."""
    return ratio(_own_steps(seed, momentum="full"), plain_steps(ADAM, seed, lr=RATE))


@claim(
    method=METHOD,
    paper_id=69,
    baseline=ADAM,
    statement="With momentum in 16 of 64 dimensions as well it needs no more steps than Adam on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=1.0,
    note="A new subspace every 50 steps, as above. The paper's claim is of LLaMA from 60M to 1B: Adam's perplexity "
    "after half the tokens.",
)
def steps_against_adam(seed: int) -> float:
    """Digits MLP; only the 64x64 layers are treated."""
    return ratio(_own_steps(seed, rank=16, update_gap=50), plain_steps(ADAM, seed, lr=RATE))


@claim(
    method=METHOD,
    paper_id=69,
    baseline=ADAM,
    statement="On 64x64 layers its state takes 0.3 times the bytes of Adam's at rank 16.",
    quantity="bytes of state on the 64x64 layers, ratio to Adam",
    threshold=0.3,
    seeds=(0,),
)
def memory(seed: int) -> float:
    """The layers of digits MLP."""
    return state_ratio(lambda parameters: SNSM(parameters, rank=16))
