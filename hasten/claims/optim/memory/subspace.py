"""Claims of Online Subspace Descent (Liang et al. 2024): steps against GaLore and Adam, and following a subspace."""

from __future__ import annotations

import torch

from hasten.claims.optim.digits import ADAM, ratio
from hasten.claims.optim.digits import steps as plain_steps
from hasten.claims.optim.memory.square_layers import captured, galore_steps, steps
from hasten.core.claim import claim
from hasten.optim.memory.projector import Projector

METHOD = "optim.online-subspace"
RATES = (1e-2, 3e-3)


def _own_steps(seed: int, lr: float) -> float:
    return steps(METHOD, seed, {"rank": None}, lr=lr, rank=16, scale=1.0)


@claim(
    method=METHOD,
    paper_id=203,
    baseline="optim.online-subspace with kind svd (GaLore)",
    statement="At equal rank and learning rate it needs 0.95 times GaLore's steps or fewer on digits.",
    quantity="steps to loss 0.1, ratio to GaLore, the worse of two learning rates",
    threshold=0.95,
    note="Rank 16 on the 64x64 layers, GaLore renews every 50 steps; learning rates 1e-2, 3e-3. The paper's claim is "
    "of perplexity on C4, 60M to 7B parameters.",
)
def steps_against_galore(seed: int) -> float:
    """Digits MLP; the layers that are not 64x64 take AdamW's own step in both."""
    return max(ratio(_own_steps(seed, lr), galore_steps(seed, lr)) for lr in RATES)


@claim(
    method=METHOD,
    paper_id=203,
    baseline=ADAM,
    statement="At rank 16 of 64 it needs 1.3 times the steps of full Adam or fewer, at equal learning rate.",
    quantity="steps to loss 0.1, ratio to Adam, the worse of two learning rates",
    threshold=1.3,
    note="Learning rates 1e-2 and 3e-3.",
)
def steps_against_adam(seed: int) -> float:
    """Digits MLP; rank 16 on the 64x64 layers."""
    return max(ratio(_own_steps(seed, lr), plain_steps(ADAM, seed, lr=lr)) for lr in RATES)


def _energy(gap: int | None, kind: str, seed: int) -> float:
    """Share of a 64x48 gradient that a rank-8 projection keeps, after 500 steps in which its subspace turns."""
    generator = torch.Generator().manual_seed(seed)
    turn = torch.randn(48, 48, generator=generator)
    turn = torch.linalg.matrix_exp(2e-3 * (turn - turn.T) / 48**0.5)
    frame = torch.linalg.qr(torch.randn(48, 8, generator=generator)).Q
    projector = Projector(kind, 8, gap=gap)
    grad = torch.zeros(())
    for _ in range(500):
        grad = torch.randn(64, 8, generator=generator) @ frame.T
        projector.update(grad)
        kept = projector.up(projector.down(grad))
        projector.learn(grad)
        frame = turn @ frame
    return captured(grad, kept)


@claim(
    method=METHOD,
    paper_id=203,
    baseline="the whole gradient",
    statement="Where the gradients' subspace turns slowly, its projection keeps 0.9 of their norm after 500 steps.",
    quantity="norm of the projected over norm of the gradient",
    relation=">=",
    threshold=0.9,
    note="Rank-8 gradients of a 64x48 matrix, turned by a fixed rotation per step.",
)
def follows_a_turning_subspace(seed: int) -> float:
    """Projector of kind online_pca with its usual step size."""
    return _energy(None, "online_pca", seed)


@claim(
    method=METHOD,
    paper_id=203,
    baseline="the whole gradient",
    statement="There a projection that is never renewed keeps less than half of the norm.",
    quantity="norm of the projected over norm of the gradient",
    threshold=0.5,
)
def a_fixed_subspace_is_lost(seed: int) -> float:
    """Projector of kind svd, made from the first gradient."""
    return _energy(None, "svd", seed)
