"""Ready problem: particles of an annealed Gaussian mixture whose score is exact, so that only the method errs."""

from __future__ import annotations

import torch

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.steer import Particles, Steering
from hasten.core.problem import Problem
from hasten.numerics.mixture import circle
from hasten.numerics.noise import VPLinear
from hasten.numerics.targets import Annealed

RUNGS = (25, 50, 100, 200)


@ready("annealed-mixture", "steer")
def annealed_mixture(gamma: float = 2.0, components: int = 5, particles: int = 1000, target: float = 0.03) -> Problem:
    """Draw particles of a Gaussian mixture to a power, from its score: error of the modes' weights against steps.

    Args:
        gamma: the power.
        components: components of the mixture.
        particles: particles per run.
        target: total variation between the modes' weights and the exact ones that counts as arrived.
    """
    check.integer("particles", particles, 2)
    mixture, schedule = circle(components), VPLinear()
    density = Annealed(
        mixture.denoiser(schedule),
        gamma,
        (2,),
        divergence=lambda x, t: mixture.divergence(x, schedule.alpha(t), schedule.sigma(t)),
    )
    goal = mixture.weights**gamma / (mixture.weights**gamma).sum()

    def distance(found: Particles) -> float:
        nearest = torch.cdist(found.x.double(), mixture.means).argmin(1)
        shares = torch.zeros_like(goal).index_add(0, nearest, found.weights)
        return float(0.5 * (shares - goal).abs().sum())

    return Problem(
        name="annealed-mixture",
        kind=Steering.kind,
        build=lambda seed: Steering(density, particles, distance, RUNGS),
        measures="total variation of the modes' weights",
        target=target,
        budget=RUNGS[-1],
        cost="calls",
        baseline="diffusion.guided-smc",
        summary="Annealed Gaussian mixture, exact score",
    )
