"""Claims of FRUGAL (Zmushko et al. 2024): steps against GaLore at equal rank, and against full Adam."""

from __future__ import annotations

from hasten.claims.optim.digits import ADAM, ratio
from hasten.claims.optim.digits import steps as plain_steps
from hasten.claims.optim.memory.square_layers import galore_steps, steps
from hasten.core.claim import claim

METHOD = "optim.frugal"
RATE = 1e-2


def _own_steps(seed: int) -> float:
    options = {"update_gap": 50, "inactive_lr_scale": 0.1, "weight_decay": 0.0}
    return steps(METHOD, seed, {"density": None}, lr=RATE, **options)


@claim(
    method=METHOD,
    paper_id=268,
    baseline="optim.online-subspace with kind svd (GaLore)",
    statement="At equal rank and learning rate it needs 0.85 times GaLore's steps or fewer on digits.",
    quantity="steps to loss 0.1, ratio to GaLore",
    threshold=0.85,
    note="Singular vectors, density 0.25 (rank 16) on the 64x64 layers, renewed every 50 steps in both; learning rate "
    "1e-2, signed steps a tenth of it. The paper's claim is of perplexity on C4, 60M to 1B parameters.",
)
def steps_against_galore(seed: int) -> float:
    """Digits MLP; the layers that are not 64x64 take AdamW's own step in both."""
    return ratio(_own_steps(seed), galore_steps(seed, RATE))


@claim(
    method=METHOD,
    paper_id=268,
    baseline=ADAM,
    statement="With a quarter of the state it needs 1.15 times the steps of full Adam or fewer on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=1.15,
    note="As above; Adam also at 1e-2.",
)
def steps_against_adam(seed: int) -> float:
    """Digits MLP; density 0.25 on the 64x64 layers."""
    return ratio(_own_steps(seed), plain_steps(ADAM, seed, lr=RATE))
