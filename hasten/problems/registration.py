"""Registration problems: a bumpy closed surface, and the Stanford bunny."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.register import Clouds, Registration, move, registration
from hasten.core.problem import Problem
from hasten.numerics.rigid import rotation_exp
from hasten.problems import data


@ready("bumpy-registration", Registration.kind)
def bumpy_registration(
    source: int = 4000,
    target: int = 2000,
    angle: float = 0.4,
    keep: float = 1.0,
    outliers: float = 0.0,
    shared: bool = False,
) -> Problem:
    """Two independent samples of one closed bumpy surface, one of them rotated about a random axis.

    No point of one set has a partner in the other, so that plain ICP creeps. The metric is the rigid RMSE to the
    true motion; the surface measures about 2 across.

    Args:
        source, target: points of the two samples.
        angle: of the rotation, in radians.
        keep: share of the source that is left when a plane cuts a part away.
        outliers: added points per source point, uniform in the bounding box.
        shared: whether the source is drawn from the target's own points (`target` of them) instead.
    """
    check.integer("source", source, 10)
    check.integer("target", target, 10)
    _check(angle, keep, outliers)

    def build(seed: int) -> Clouds:
        generator = torch.Generator().manual_seed(seed)
        goal = _bumpy(target, generator)
        return _displace(goal if shared else _bumpy(source, generator), goal, angle, keep, outliers, generator)

    return registration(
        "bumpy-registration",
        build,
        target=0.025,
        budget=300,
        summary="Registration of two independent samples of a bumpy surface.",
    )


@ready("bunny", Registration.kind)
def bunny(points: int = 3000, angle: float = 0.4, keep: float = 1.0, outliers: float = 0.0) -> Problem:
    """Two independent samples of the Stanford bunny's points, one of them rotated about a random axis.

    The metric is the rigid RMSE to the true motion, in units of the bunny's size (bounding-box diagonal).

    Args:
        points: points of each sample, at most 17000; no point is in both.
        angle: of the rotation, in radians.
        keep: share of the source that is left when a plane cuts a part away.
        outliers: added points per source point, uniform in the bounding box.
    """
    check.integer("points", points, 10, 17000)
    _check(angle, keep, outliers)

    def build(seed: int) -> Clouds:
        cloud = torch.from_numpy(data.load("bunny")["points"].copy()).to(torch.float64)
        cloud = (cloud - cloud.mean(0)) / (cloud.max(0).values - cloud.min(0).values).norm()
        generator = torch.Generator().manual_seed(seed)
        chosen = cloud[torch.randperm(len(cloud), generator=generator)[: 2 * points]]
        return _displace(chosen[:points], chosen[points:], angle, keep, outliers, generator)

    return registration(
        "bunny",
        build,
        target=0.004,
        budget=300,
        summary="Registration of two disjoint samples of the Stanford bunny.",
    )


def _check(angle: float, keep: float, outliers: float) -> None:
    check.real("angle", angle, 0.0, math.pi)
    check.real("keep", keep, 0.0, 1.0, open_low=True)
    check.real("outliers", outliers, 0.0, 1.0)


def _bumpy(count: int, generator: torch.Generator) -> Tensor:
    """Points of the surface `r = 1 + bumps` over directions uniform on the sphere."""
    direction = torch.randn(count, 3, generator=generator, dtype=torch.float64)
    direction = direction / direction.norm(dim=1, keepdim=True)
    x, y, z = direction.T
    radius = 1.0 + 0.15 * torch.sin(4 * x + 1) * torch.cos(3 * y) + 0.1 * torch.sin(5 * z + 2 * x) + 0.1 * y * z
    return direction * radius.unsqueeze(1)


def _displace(
    source: Tensor, target: Tensor, angle: float, keep: float, outliers: float, generator: torch.Generator
) -> Clouds:
    """Cut and soil the source, then move it by the inverse of the motion that is to be found."""
    axis = torch.randn(3, generator=generator, dtype=torch.float64)
    if keep < 1.0:
        height = source @ torch.nn.functional.normalize(torch.randn(3, generator=generator, dtype=torch.float64), dim=0)
        source = source[height.argsort()[: max(10, int(keep * len(source)))]]
    count = int(outliers * len(source))
    low, high = source.min(0).values, source.max(0).values
    stray = low + (high - low) * torch.rand(count, 3, generator=generator, dtype=torch.float64)
    truth = torch.eye(4, dtype=torch.float64)
    truth[:3, :3] = rotation_exp(angle * axis / axis.norm())
    truth[:3, 3] = 0.1 * torch.randn(3, generator=generator, dtype=torch.float64)
    inverse = torch.linalg.inv(truth)
    inside = torch.cat((torch.ones(len(source), dtype=torch.bool), torch.zeros(count, dtype=torch.bool)))
    return Clouds(move(inverse, torch.cat((source, stray))), target, truth, inside=inside)
