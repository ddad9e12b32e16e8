"""Kind `register`: the rigid motion that lays one point set onto another."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.problem import Instance, Problem


class Clouds(NamedTuple):
    """What a registration starts from: (n, 3) source, (m, 3) target and, where known, the true motion (4, 4).

    `inside` marks the source points that belong to the shape (no outliers); the metric is taken over them.
    """

    source: Tensor
    target: Tensor
    truth: Tensor | None = None
    normals: Tensor | None = None
    inside: Tensor | None = None


class Registration(Instance):
    """Registration of `source` to `target`. The answer (`state.x`) is a rigid motion: a 4x4 tensor, float64.

    Oracle: `nearest`, counted as `query`: the nearest target points of all source points at once.

    Args:
        clouds: the point sets.
        start: 4x4 motion to start from; None lays the centres of mass on one another.

    The metric is the root mean square distance between the source under the answer and under the true motion;
    where the truth is not known, that between the moved source and its nearest target points.
    """

    kind = "register"

    def __init__(self, clouds: Clouds, start: Tensor | None = None) -> None:
        super().__init__()
        self.source = _points("source", clouds.source)
        self.target = _points("target", clouds.target)
        self.truth, self.normals = clouds.truth, clouds.normals
        if self.normals is not None and self.normals.shape != self.target.shape:
            raise InputError(
                f"target_normals must be of the target's shape {tuple(self.target.shape)}, "
                f"got {tuple(self.normals.shape)}"
            )
        if start is None:
            start = torch.eye(4, dtype=torch.float64)
            start[:3, 3] = self.target.mean(0) - self.source.mean(0)
        if start.shape != (4, 4) or not bool(torch.isfinite(start).all()):
            raise InputError(f"init must be a finite 4x4 matrix, got {start!r}")
        self.x0 = start.to(torch.float64)
        self._kept = self.source if clouds.inside is None else self.source[clouds.inside]
        self._tree = KDTree(self.target.numpy())

    def offers(self) -> frozenset[str]:
        return frozenset({"nearest"} | ({"normals"} if self.normals is not None else set()))

    def nearest(self, motion: Tensor) -> tuple[Tensor, Tensor]:
        """Index of and distance to the nearest target point, for every source point under the 4x4 `motion`."""
        self.calls["query"] += 1
        return self._query(move(motion, self.source))

    def spacing(self, neighbours: int = 6) -> float:
        """Median over the target of the median distance to the `neighbours` nearest other target points."""
        self.calls["spacing"] += 1
        distance, _ = self._tree.query(self.target.numpy(), k=min(neighbours, len(self.target) - 1) + 1)
        return float(np.median(np.median(distance[:, 1:], axis=1)))

    def metric(self, x: Tensor) -> float:
        moved = move(x, self._kept)
        error = moved - move(self.truth, self._kept) if self.truth is not None else self._query(moved)[1].unsqueeze(1)
        return float(error.square().sum(1).mean().sqrt())

    def _query(self, points: Tensor) -> tuple[Tensor, Tensor]:
        if not bool(torch.isfinite(points).all()):
            raise FloatingPointError("the motion became non-finite")
        distance, index = self._tree.query(points.numpy())
        return torch.from_numpy(np.asarray(index)), torch.from_numpy(distance)


def move(motion: Tensor, points: Tensor) -> Tensor:
    """(n, 3) points under a 4x4 motion."""
    return points @ motion[:3, :3].T + motion[:3, 3]


def _points(name: str, points: Tensor) -> Tensor:
    if not isinstance(points, Tensor) or points.dim() != 2 or points.shape[1] != 3 or len(points) < 3:
        shape = tuple(getattr(points, "shape", ()))
        raise InputError(f"{name} must hold at least 3 points as an (n, 3) array, got shape {shape}")
    points = points.to(torch.float64).contiguous()
    if not bool(torch.isfinite(points).all()):
        raise InputError(f"{name} has coordinates that are not finite; remove those points first")
    spread = torch.linalg.svdvals(points - points.mean(0))
    if float(spread[1]) <= 1e-9 * float(spread[0]):
        raise InputError(f"{name} is collinear: its points lie on one line, so the rotation about it is not determined")
    return points


def registration(name: str, build: Callable[[int], Clouds], **options: Any) -> Problem:
    """A registration problem of your own.

    Args:
        build: seed -> `Clouds(source, target, ...)`.
        options: fields of `Problem`: `target`, `budget`, ...
    """
    options.setdefault("measures", "rigid RMSE")
    options.setdefault("baseline", "solve.icp")
    return Problem(name=name, kind=Registration.kind, build=lambda seed: Registration(build(seed)), **options)
