"""Rigid motions of space: least-squares fit, logarithm and exponential; 4x4 tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.core.errors import DivergedError


def rigid_fit(points: Tensor, matched: Tensor, weights: Tensor | None = None) -> Tensor:
    """The motion that minimises `sum_i w_i |R x_i + t - q_i|^2` (Kabsch).

    Args:
        points: (n, 3) x.
        matched: (n, 3) q.
        weights: (n,) w >= 0; equal if not given.

    Raises:
        DivergedError: the weights vanish, or the matched points lie on one line, so that R is not determined.
    """
    w = torch.full_like(points[:, 0], 1.0 / len(points)) if weights is None else weights / weights.sum()
    centre, goal = w @ points, w @ matched
    covariance = ((points - centre) * w.unsqueeze(1)).T @ (matched - goal)
    if not bool(torch.isfinite(covariance).all()):
        raise DivergedError("rigid fit: the weights are all zero or the points are not finite")
    u, s, vt = torch.linalg.svd(covariance)
    if float(s[1]) <= 1e-14 * float(s[0]) or float(s[0]) == 0.0:
        raise DivergedError("rigid fit: the matched points lie on one line; start closer to the solution")
    sign = torch.ones_like(s)
    sign[2] = torch.sign(torch.linalg.det(vt.T @ u.T))
    rotation = vt.T @ (sign.unsqueeze(1) * u.T)
    return _assemble(rotation, goal - rotation @ centre)


def plane_fit(points: Tensor, matched: Tensor, normals: Tensor, weights: Tensor | None = None) -> Tensor:
    """The small motion that minimises `sum_i w_i (n_i . (R x_i + t - q_i))^2`, linearised in the rotation.

    Raises:
        DivergedError: the normals leave a motion undetermined (all points on a plane, sphere or cylinder).
    """
    w = torch.full_like(points[:, 0], 1.0 / len(points)) if weights is None else weights / weights.sum()
    rows = torch.cat((torch.linalg.cross(points, normals), normals), 1)
    residual = ((points - matched) * normals).sum(1)
    system = rows.T @ (w.unsqueeze(1) * rows)
    if not bool(torch.isfinite(system).all()):
        raise DivergedError("plane fit: the weights are all zero or the points are not finite")
    curvature = torch.linalg.eigvalsh(system)
    if float(curvature[0]) <= 1e-12 * float(curvature[-1]):
        raise DivergedError("plane fit: the normals do not determine the motion; take metric='point'")
    small = -torch.linalg.solve(system, rows.T @ (w * residual))
    rotation = rotation_exp(small[:3])
    return _assemble(rotation, small[3:])


def rotation_exp(omega: Tensor) -> Tensor:
    """Rotation by the angle |omega| about the axis omega."""
    return torch.linalg.matrix_exp(_cross(omega))


def rigid_exp(twist: Tensor) -> Tensor:
    """Motion of a 4x4 logarithm."""
    return torch.linalg.matrix_exp(twist)


def rotation_angle(motion: Tensor) -> float:
    """Angle of the rotation part, in [0, pi]."""
    r = motion[:3, :3]
    skew = torch.stack((r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1]))
    return math.atan2(float(skew.norm()), float(r.diagonal().sum()) - 1.0)


def rigid_log(motion: Tensor) -> Tensor | None:
    """The 4x4 logarithm of a motion; None at a rotation by pi, where it is not unique."""
    angle = rotation_angle(motion)
    if angle > math.pi - 1e-6:
        return None
    r, t = motion[:3, :3], motion[:3, 3]
    factor = 0.5 + angle**2 / 12.0 if angle < 1e-4 else angle / (2.0 * math.sin(angle))
    omega = factor * (r - r.T)
    # Coefficient of omega^2 in the inverse of the map from log translation to translation; 1/12 in the limit.
    square = 1.0 / 12.0 if angle < 1e-4 else (1.0 - angle / (2.0 * math.tan(angle / 2.0))) / angle**2
    twist = torch.zeros_like(motion)
    twist[:3, :3] = omega
    twist[:3, 3] = t - 0.5 * omega @ t + square * omega @ (omega @ t)
    return twist


def _cross(v: Tensor) -> Tensor:
    x, y, z = v
    zero = torch.zeros_like(x)
    return torch.stack((zero, -z, y, z, zero, -x, -y, x, zero)).reshape(3, 3)


def _assemble(rotation: Tensor, translation: Tensor) -> Tensor:
    motion = torch.eye(4, dtype=rotation.dtype, device=rotation.device)
    motion[:3, :3] = rotation
    motion[:3, 3] = translation
    return motion
