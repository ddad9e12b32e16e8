"""Claims of schedule refinement (Defazio et al. 2023): linear decay on a nonsmooth problem, exact refinements."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from scipy.optimize import linprog

from hasten.core.claim import claim
from hasten.optim.schedules.refined_schedule import LinearDecay, refine_schedule

STEPS = 1000
LEARNING_RATES = (0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
SCHEDULES: dict[str, Callable[[int], float]] = {
    "constant": lambda s: 1.0,
    "inverse-sqrt": lambda s: 1 / math.sqrt(s + 1),
    "cosine": lambda s: 0.5 * (1 + math.cos(math.pi * s / STEPS)),
}


@cache
def regression(seed: int) -> tuple[torch.Tensor, torch.Tensor, float]:
    """Least absolute deviations, n = 200, d = 20, Cauchy noise of scale 0.5: data and least value."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(200, 20, generator=generator, dtype=torch.float64)
    truth = torch.randn(20, generator=generator, dtype=torch.float64)
    uniform = torch.rand(200, generator=generator, dtype=torch.float64)
    b = x @ truth + 0.5 * torch.tan(math.pi * (uniform - 0.5))
    # min sum u + v  subject to  X w + u - v = b,  u, v >= 0
    eye = np.eye(200)
    costs = np.concatenate([np.zeros(20), np.full(400, 1 / 200)])
    bounds = [(None, None)] * 20 + [(0, None)] * 400
    solved = linprog(costs, A_eq=np.hstack([x.numpy(), eye, -eye]), b_eq=b.numpy(), bounds=bounds, method="highs")
    return x, b, float(solved.fun)


def last_gap(name: str, lr: float, seed: int) -> float:
    """Gap of the last iterate after single-sample subgradients."""
    x, b, least = regression(seed)
    w = torch.nn.Parameter(torch.zeros(20, dtype=torch.float64))
    optimizer = torch.optim.SGD([w], lr=lr)
    if name == "linear":
        schedule = LinearDecay(optimizer, STEPS)
    else:
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, SCHEDULES[name])
    rows = torch.randint(200, (STEPS,), generator=torch.Generator().manual_seed(seed + 1000)).tolist()
    for row in rows:
        w.grad = torch.sign(x[row] @ w.detach() - b[row]) * x[row]
        optimizer.step()
        schedule.step()
    return float((x @ w.detach() - b).abs().mean()) - least


@cache
def best_gap(name: str, seed: int) -> float:
    """Gap at the learning rate of the six for which it is least."""
    return min(last_gap(name, lr, seed) for lr in LEARNING_RATES)


def ratio(baseline: str, seed: int) -> float:
    """Gap under linear decay over the gap under another schedule, each at its best learning rate."""
    return best_gap("linear", seed) / best_gap(baseline, seed)


@claim(
    method="optim.linear-decay",
    paper_id=415,
    baseline="constant learning rate",
    statement="The last iterate under linear decay has at most 0.6 times the gap of a constant learning rate.",
    quantity="gap after 1000 steps of least absolute deviations, ratio, each at its best of six learning rates",
    threshold=0.6,
    seeds=range(5),
)
def against_constant(seed: int) -> float:
    """n = 200, d = 20, Cauchy noise, single-sample subgradients."""
    return ratio("constant", seed)


@claim(
    method="optim.linear-decay",
    paper_id=415,
    baseline="learning rate falling as 1/sqrt(t)",
    statement="The last iterate under linear decay has at most 0.7 times the gap of 1/sqrt(t).",
    quantity="gap after 1000 steps of least absolute deviations, ratio, each at its best of six learning rates",
    threshold=0.7,
    seeds=range(5),
    note="The grid is half a decade wide, at which 1/sqrt(t) is best at 0.3; between its points, at 0.2, it comes "
    "closer: the ratio is then about 0.8.",
)
def against_inverse_sqrt(seed: int) -> float:
    """n = 200, d = 20, Cauchy noise, single-sample subgradients."""
    return ratio("inverse-sqrt", seed)


@claim(
    method="optim.linear-decay",
    paper_id=415,
    baseline="cosine decay",
    statement="The last iterate under linear decay is no worse than under cosine decay.",
    quantity="gap after 1000 steps of least absolute deviations, ratio, each at its best of six learning rates",
    threshold=1.0,
    seeds=range(5),
    note="Over 120 further data sets at learning rate 0.03 the ratio is 0.98 +- 0.03: the two schedules are equal "
    "within the noise, linear decay being no worse.",
)
def against_cosine(seed: int) -> float:
    """n = 200, d = 20, Cauchy noise, single-sample subgradients."""
    return ratio("cosine", seed)


@claim(
    method="optim.linear-decay",
    paper_id=415,
    baseline="the straight line 1 - t/T",
    statement="Refining constant gradient norms gives linear decay.",
    quantity="largest deviation from 1 - t/T, in units of 1/T, T = 1000",
    threshold=1.0 + 1e-9,
    seeds=(0,),
    note="The bound is 1/T; the 1e-9 allows for rounding, as the first value meets the bound exactly.",
)
def constant_norms_refine_to_linear_decay(seed: int) -> float:
    """Exact property of the closed form."""
    line = 1 - np.arange(1, STEPS + 1) / STEPS
    return float(np.abs(refine_schedule(np.ones(STEPS)) - line).max() * STEPS)


@claim(
    method="optim.linear-decay",
    paper_id=415,
    baseline="a schedule without warm-up",
    statement="Refining norms that fall from 10 to 1 in the first tenth gives a warm-up, and ends at zero.",
    quantity="first and last factor, added; the largest is 1",
    threshold=0.5,
    seeds=(0,),
    note="0.5 stands for a schedule that rises first: it must start at no more than half of its peak.",
)
def falling_norms_refine_to_a_warmup(seed: int) -> float:
    """T = 1000, norms falling linearly from 10 to 1 over 100 steps."""
    norms = np.concatenate([np.linspace(10, 1, STEPS // 10), np.ones(STEPS - STEPS // 10)])
    schedule = refine_schedule(norms)
    return float(schedule[0] + schedule[-1])
