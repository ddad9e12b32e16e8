"""Claims of Ano (Kegreisz 2025): digits, with and without noise on the gradients."""

from __future__ import annotations

from hasten.claims.optim.digits import ADAM, best_steps, noisy_loss, ratio
from hasten.core.claim import claim

METHOD = "optim.ano"
SCALE = "The paper's claim is of reinforcement learning, and of CIFAR and GLUE with noise."


@claim(
    method=METHOD,
    paper_id=213,
    baseline=ADAM,
    statement="With gradient noise of 0.05 per entry on digits, Ano's loss after 300 steps is 0.35 times Adam's.",
    quantity="loss after 300 steps at lr 3e-3, ratio to Adam",
    threshold=0.35,
    note=SCALE,
)
def noisy_gradients(seed: int) -> float:
    """Digits MLP, both at lr 3e-3."""
    return noisy_loss(METHOD, seed) / noisy_loss(ADAM, seed)


@claim(
    method=METHOD,
    paper_id=213,
    baseline=ADAM,
    statement="Without noise, at the best of four learning rates each, it needs 0.85 times Adam's steps on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=0.85,
    note="At equal rates up to 1e-2 it needs two thirds of Adam's steps or fewer; at its best rate, 3e-2, Adam makes "
    "up for most of that. " + SCALE,
)
def steps_at_best_rate(seed: int) -> float:
    """Digits MLP, learning rates 1e-3, 3e-3, 1e-2, 3e-2."""
    return ratio(best_steps(METHOD, seed), best_steps(ADAM, seed))
