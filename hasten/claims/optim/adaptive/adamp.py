"""Claims of AdamP and SGDP (Heo et al. 2021): growth of weights whose scale does not matter."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.claims.optim.digits import ratio
from hasten.core.claim import claim
from hasten.optim.adaptive.adamp import SGDP, AdamP

BASELINE = "SGD with momentum 0.9"
SCALE = (
    "Learning rates 0.03 and 0.1, the worse counts. The paper's claim is of thirteen benchmarks of vision and audio."
)
RATES = (0.03, 0.1)


def _angle(w: Tensor, target: Tensor) -> Tensor:
    return (w * target).sum() / w.norm()


def _direction(seed: int, make: Callable[[list[nn.Parameter]], Optimizer], steps: int = 1000) -> tuple[float, ...]:
    """Maximise the cosine between weights and a target at right angles to them at first, in 100 variables.

    Returns the final norm of the weights (1 at first), the steps to a cosine of 0.99, and the largest part of a step
    along the weights, relative to the lengths of both.
    """
    generator = torch.Generator().manual_seed(seed)
    target, start = torch.linalg.qr(torch.randn(100, 2, generator=generator, dtype=torch.float64)).Q.T
    w = nn.Parameter(start[None].clone())
    optimizer = make([w])
    reached, radial = math.inf, 0.0
    for t in range(1, steps + 1):
        optimizer.zero_grad()
        (-_angle(w, target)).backward()
        before = w.detach().clone()
        optimizer.step()
        with torch.no_grad():
            step = w - before
            radial = max(radial, float((step * before).sum().abs() / (step.norm() * before.norm())))
            if reached == math.inf and _angle(w, target) >= 0.99:
                reached = t
    return float(w.detach().norm()), reached, radial


@cache
def _pair(seed: int, lr: float) -> tuple[tuple[float, ...], ...]:
    makes = (partial(rule, lr=lr, momentum=0.9) for rule in (SGDP, torch.optim.SGD))
    return tuple(_direction(seed, make) for make in makes)


@claim(
    method="optim.sgdp",
    paper_id=196,
    baseline=BASELINE,
    statement="On a scale-invariant function of 100 variables, momentum SGD ends at twice the weights of SGDP.",
    quantity="norm of the weights after 1000 steps of momentum SGD, ratio to SGDP",
    relation=">=",
    threshold=2.0,
    note=SCALE,
)
def weights_stay_small(seed: int) -> float:
    """Norm 1 at the start."""
    return min(theirs[0] / ours[0] for ours, theirs in (_pair(seed, lr) for lr in RATES))


@claim(
    method="optim.sgdp",
    paper_id=196,
    baseline=BASELINE,
    statement="There SGDP comes to a cosine of 0.99 in 0.85 times the steps of momentum SGD.",
    quantity="steps to a cosine of 0.99, ratio to momentum SGD",
    threshold=0.85,
    note=SCALE,
)
def steps_to_direction(seed: int) -> float:
    """Norm 1 at the start, right angle to the target."""
    return max(ratio(ours[1], theirs[1]) for ours, theirs in (_pair(seed, lr) for lr in RATES))


@claim(
    method="optim.adamp",
    paper_id=196,
    baseline="a step along the weights, 1",
    statement="On the same function no step of AdamP has a part along the weights.",
    quantity="largest |<p, step>| / (|p| |step|) of 1000 steps at lr 1e-3",
    threshold=1e-6,
)
def steps_have_no_radial_part(seed: int) -> float:
    """In double precision."""
    return _direction(seed, partial(AdamP, lr=1e-3))[2]
