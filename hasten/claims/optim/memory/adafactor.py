"""Claims of Adafactor (Shazeer, Stern 2018): steps, memory, and what update clipping is for."""

from __future__ import annotations

import math
from typing import Any

import hasten
from hasten.claims.optim.digits import ADAM, best_steps, ratio, state_ratio
from hasten.core.claim import claim
from hasten.core.kinds.train import Training
from hasten.optim.memory.adafactor import Adafactor

METHOD = "optim.adafactor"
FIXED: dict[str, Any] = {"relative_step": False, "scale_parameter": False}


@claim(
    method=METHOD,
    paper_id=205,
    baseline=ADAM,
    statement="At the best of four fixed learning rates each, it needs 1.3 times Adam's steps or fewer on digits.",
    quantity="steps to loss 0.1, ratio to Adam",
    threshold=1.3,
    note="Its own counts, 100 to 115, are what the threshold was set by; Adam, at 70 to 90, arrives "
    "sooner here than there (80 to 110). The paper's claim is of translation with the Transformer.",
)
def steps_at_best_rate(seed: int) -> float:
    """Digits MLP; relative steps and parameter scaling are off. Learning rates 1e-3, 3e-3, 1e-2, 3e-2."""
    return ratio(best_steps(METHOD, seed, **FIXED), best_steps(ADAM, seed))


@claim(
    method=METHOD,
    paper_id=205,
    baseline=ADAM,
    statement="On 64x64 layers its state takes 0.06 times the bytes of Adam's.",
    quantity="bytes of state on the 64x64 layers, ratio to Adam",
    threshold=0.06,
    seeds=(0,),
)
def memory(seed: int) -> float:
    """The layers of digits MLP."""
    return state_ratio(lambda parameters: Adafactor(parameters, lr=1e-2, **FIXED))


def _largest_update(clip_threshold: float, seed: int) -> float:
    """Largest rms of a weight matrix's update, in units of the step, over 100 steps with b2 fixed at 0.999.

    b2 is held by turning its decay around the present step; there is no warm-up.
    """
    instance = hasten.problem("digits-mlp").build(seed)
    assert isinstance(instance, Training)
    lr, beta2 = 1e-2, 0.999
    optimizer = Adafactor(instance.parameters, lr=lr, clip_threshold=clip_threshold, **FIXED)
    matrices = [parameter for parameter in instance.parameters if parameter.ndim == 2]
    largest = 0.0
    for t in range(1, 101):
        if t > 1:
            # 1 - t^d = beta2 for d = log(1 - beta2) / log(t)
            optimizer.param_groups[0]["decay_rate"] = math.log(1 - beta2) / math.log(t)
        before = [matrix.detach().clone() for matrix in matrices]
        instance.gradient()
        optimizer.step()
        moved = [float((new.detach() - old).square().mean().sqrt()) / lr for new, old in zip(matrices, before)]
        largest = max(largest, *moved)
    return largest


@claim(
    method=METHOD,
    paper_id=205,
    baseline="Adafactor without update clipping",
    statement="With a slow b2 = 0.999, no clipping and no warm-up, updates grow beyond 1.5 times the step.",
    quantity="largest rms of an update without clipping, in steps",
    relation=">=",
    threshold=1.5,
)
def slow_moments_need_clipping(seed: int) -> float:
    """Digits MLP, the first 100 steps."""
    return _largest_update(1e9, seed)


@claim(
    method=METHOD,
    paper_id=205,
    baseline="Adafactor without update clipping",
    statement="Clipping bounds them to the step.",
    quantity="largest rms of an update with clipping, in steps",
    threshold=1.0 + 1e-4,
    aggregate="max",
    note="The bound is 1 in exact arithmetic; 1e-4 allows for measuring it from rounded parameters.",
)
def clipping_bounds_updates(seed: int) -> float:
    """Digits MLP, the first 100 steps."""
    return _largest_update(1.0, seed)
