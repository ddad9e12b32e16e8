"""Claims of Conda (Wang et al. 2025): steps against Adam, and how even its updates are."""

from __future__ import annotations

import torch

import hasten
from hasten.claims.optim.digits import ADAM, best_steps, ratio
from hasten.core.claim import claim
from hasten.core.kinds.train import Training
from hasten.core.registry import entry

METHOD = "optim.conda"
RATES = (3e-3, 1e-2, 3e-2)
GAP = 50


@claim(
    method=METHOD,
    paper_id=9,
    baseline=ADAM,
    statement="At the best learning rate of each, it needs 0.75 times Adam's steps or fewer on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=0.75,
    note="A new basis every 50 steps. The paper's claim is of LLaMA from 60M to 1B: 2 to 2.5 times AdamW's speed.",
)
def steps_at_best_rate(seed: int) -> float:
    """Digits MLP; Conda at 3e-3, 1e-2, 3e-2, Adam also at 1e-3."""
    return ratio(best_steps(METHOD, seed, RATES, update_gap=GAP), best_steps(ADAM, seed))


def _spread(method: str, seed: int, **hyper: float) -> float:
    """Largest over median singular value of the 64x64 layers' updates, mean over 60 steps."""
    instance = hasten.problem("digits-mlp").build(seed)
    assert isinstance(instance, Training)
    optimizer = entry(method).target(instance.parameters, lr=1e-2, **hyper)
    square = [parameter for parameter in instance.parameters if parameter.shape == (64, 64)]
    found = []
    for _ in range(60):
        instance.gradient()
        before = [parameter.detach().clone() for parameter in square]
        optimizer.step()
        values = torch.linalg.svdvals(torch.stack([p.detach() - old for p, old in zip(square, before)]))
        found.append(values[:, 0] / values.median(1).values)
    return float(torch.stack(found).mean())


@claim(
    method=METHOD,
    paper_id=9,
    baseline=ADAM,
    statement="Its updates of 64x64 layers have half the ratio of largest to median singular value that Adam's have.",
    quantity="largest over median singular value of the update, ratio to Adam",
    threshold=0.5,
    note="Both at learning rate 1e-2 on digits, mean over the first 60 steps.",
)
def even_updates(seed: int) -> float:
    """Digits MLP, a new basis every 50 steps."""
    return _spread(METHOD, seed, update_gap=GAP) / _spread(ADAM, seed)
