"""Claims of D-Adaptation (Defazio, Mishchenko 2023): near tuned SGD, the right distance at any scale, digits."""

from __future__ import annotations

from functools import cache

import torch

from hasten.claims.optim.digits import ADAM, best_steps, ratio, steps
from hasten.claims.optim.step_size.dog import LEARNING_RATES, averaged_gap, sgd
from hasten.core.claim import claim
from hasten.optim.step_size.dadapt import DAdaptSGD

DISTANCES = (0.01, 1.0, 100.0)


@claim(
    method="optim.dadapt-sgd",
    paper_id=259,
    baseline="SGD at the best of six learning rates from 0.01 to 10, with the same averaging",
    statement="Without tuning, D-Adaptation ends within 5 times the gap of SGD tuned over six learning rates.",
    quantity="gap after 2000 steps, ratio to tuned SGD",
    threshold=5.0,
)
def near_tuned_sgd(seed: int) -> float:
    """Breast-cancer logistic regression, batch 16, averaged iterates."""
    best = min(averaged_gap(sgd(lr), seed) for lr in LEARNING_RATES)
    return averaged_gap(DAdaptSGD, seed) / best


@cache
def approach(distance: float, seed: int, length: int = 3000) -> tuple[float, float]:
    """Least distance to the solution and last `d`, over the distance at the start, on `|x - x*|` in 10 variables."""
    generator = torch.Generator().manual_seed(seed)
    solution = torch.randn(10, generator=generator, dtype=torch.float64)
    solution *= distance / solution.norm()
    x = torch.nn.Parameter(torch.zeros(10, dtype=torch.float64))
    optimizer = DAdaptSGD([x])
    best = distance
    for _ in range(length):
        away = x.detach() - solution
        best = min(best, float(away.norm()))
        x.grad = away / away.norm()
        optimizer.step()
    return best / distance, optimizer.d / distance


@claim(
    method="optim.dadapt-sgd",
    paper_id=259,
    baseline="the distance of the start from the solution",
    statement="On |x - x*| it comes within 0.4 of the first distance in 3000 steps, be that 0.01, 1 or 100.",
    quantity="least distance over the first one, worst of the three scales",
    threshold=0.4,
)
def comes_near_at_any_scale(seed: int) -> float:
    """Ten variables, start at 0, unit subgradients."""
    return max(approach(distance, seed)[0] for distance in DISTANCES)


@claim(
    method="optim.dadapt-sgd",
    paper_id=259,
    baseline="the distance of the start from the solution",
    statement="On |x - x*| the estimate d ends between 0.3 and 1.5 times the distance, be that 0.01, 1 or 100.",
    quantity="smallest last d over the distance, of the three scales; the largest must be below 1.5, else inf",
    threshold=(0.3, 1.5),
    relation="in",
)
def finds_the_distance_at_any_scale(seed: int) -> float:
    """Ten variables, start at 0, unit subgradients."""
    found = [approach(distance, seed)[1] for distance in DISTANCES]
    return min(found) if max(found) <= 1.5 else float("inf")


TUNED_ADAM = f"{ADAM} at the best of four learning rates from 1e-3 to 3e-2"
STEPS = "steps to loss 0.1, ratio to tuned Adam; median of three seeds, so that two of three must comply"


@claim(
    method="optim.dadapt-adam",
    paper_id=259,
    baseline=TUNED_ADAM,
    statement="Without tuning, D-Adapted Adam trains on digits in at most twice the steps of Adam at its best rate.",
    quantity=STEPS,
    threshold=2.0,
    note="At the defaults, without bias correction, d overshoots on two of three seeds and the network never recovers; "
    "the authors' package does the same on the same batches. growth_rate=1.02 arrives on all three, in 430 to 460 "
    "steps, where tuned Adam needs 70 to 90.",
)
def near_tuned_adam(seed: int) -> float:
    """Digits MLP, the package's defaults."""
    return ratio(steps("optim.dadapt-adam", seed), best_steps(ADAM, seed))


@claim(
    method="optim.dadapt-adam",
    paper_id=259,
    baseline=TUNED_ADAM,
    statement="With bias correction, D-Adapted Adam trains on digits in at most twice the steps of Adam at its best "
    "rate.",
    quantity=STEPS,
    threshold=2.0,
)
def near_tuned_adam_with_bias_correction(seed: int) -> float:
    """Digits MLP, `use_bias_correction`."""
    return ratio(steps("optim.dadapt-adam", seed, use_bias_correction=True), best_steps(ADAM, seed))
