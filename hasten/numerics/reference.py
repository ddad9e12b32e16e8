"""Reference solutions of the probability-flow ODE, and orders of convergence against them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError

if TYPE_CHECKING:
    from hasten.numerics.denoiser import Denoiser


@torch.no_grad()
def rk4_lambda(denoiser: Denoiser, x_T: Tensor, steps: int = 4000, t_end: float | None = None) -> Tensor:
    """The probability-flow ODE from `x_T` at T to `t_end` (t_min if not given), by Runge-Kutta 4 in float64.

    With `y = x/alpha` and `lam` as the variable the ODE reads `dy/dlam = -rho eps(alpha y, lam)`. Costs 4 evaluations
    per step; error of order `steps^-4`. The network is evaluated in the type of `x_T`, which is that of its weights.
    """
    check.integer("steps", steps, 1)
    schedule = denoiser.schedule
    t_end = schedule.t_min if t_end is None else t_end
    first, last = schedule.lam(schedule.T), schedule.lam(t_end)
    if not (math.isfinite(first) and math.isfinite(last)):
        raise InputError(f"a reference needs alpha and sigma above 0 from T={schedule.T:g} down to t={t_end:g}")
    lams = torch.linspace(first, last, 2 * steps + 1, dtype=torch.float64)
    times = schedule.t_of_lam(lams)
    times[0], times[-1] = schedule.T, t_end
    alphas, rhos = schedule.alpha(times).tolist(), (-lams).exp().tolist()
    h = (last - first) / steps
    t = times.tolist()

    def slope(y: Tensor, i: int) -> Tensor:
        return -rhos[i] * denoiser.eps((alphas[i] * y).to(x_T.dtype), t[i]).double()

    y = x_T.double() / alphas[0]
    for i in range(0, 2 * steps, 2):
        k1 = slope(y, i)
        k2 = slope(y + 0.5 * h * k1, i + 1)
        k3 = slope(y + 0.5 * h * k2, i + 1)
        k4 = slope(y + h * k3, i + 2)
        y = y + (h / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)
    return alphas[-1] * y


def order_fit(errors: Sequence[float], steps: Sequence[float], floor: float = 1e-12) -> float:
    """Order of convergence: minus the least-squares slope of log(error) against log(steps).

    Args:
        errors, steps: equally many, at least two; errors at or below `floor` are rounding and are left out.
    """
    if len(errors) != len(steps):
        raise InputError(f"errors and steps must be equally many, got {len(errors)} and {len(steps)}")
    kept = [(math.log(n), math.log(error)) for error, n in zip(errors, steps) if error > floor]
    if len({n for n, _ in kept}) < 2:
        raise InputError(f"an order needs two errors above {floor:g} at different steps, got {list(errors)}")
    n, error = zip(*kept)
    return -float(np.polyfit(n, error, 1)[0])


def rms(x: Tensor, reference: Tensor) -> float:
    """Root mean square, over the batch, of the Euclidean distance between a sample and its reference."""
    return float((x.double() - reference.double()).flatten(1).square().sum(1).mean().sqrt())
