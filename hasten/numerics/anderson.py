"""Anderson acceleration of a fixed-point iteration `u <- g(u)`, for any solver that has one."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError


class AndersonMixer:
    """Extrapolates a fixed-point iteration from its last `m + 1` points.

    With residuals `F_k = g(u_k) - u_k` and differences `dF`, `dG` over the last m steps,
    `theta = argmin |F_k - dF theta|` and `u_{k+1} = g(u_k) - dG theta`. The columns of dF are scaled to unit
    norm before the least-squares fit, which is solved by a pseudo-inverse with relative cut-off `rcond`.

    Call `start(u)` once, then `step(g)` with the map's value at the current point; `step` returns the next point.
    A caller that rejects it hands back another current point by `replace`. Memory: `2 m` vectors; time per
    step: O(m n + m^2 n).

    Args:
        m: differences kept, at least 1; 3 to 10 is usual.
        restart: forget the history after this many mixed steps; 0 for never.
        rcond: singular values of the scaled dF below `rcond` times the largest are dropped.

    Source: D. G. Anderson (1965), J. ACM 12(4); H. F. Walker, P. Ni (2011), SIAM J. Numer. Anal. 49(4).
    """

    def __init__(self, m: int = 5, *, restart: int = 0, rcond: float = 1e-10) -> None:
        self.m = check.integer("m", m, 1)
        self.restart = check.integer("restart", restart, 0)
        self.rcond = check.positive("rcond", rcond)
        self._point: Tensor | None = None
        self.reset()

    def reset(self) -> None:
        """Forget the history, keep the current point."""
        self._last: tuple[Tensor, Tensor] | None = None
        self._d_residual: deque[Tensor] = deque(maxlen=self.m)
        self._d_value: deque[Tensor] = deque(maxlen=self.m)
        self._mixed = 0

    def start(self, u: Tensor) -> None:
        """Begin at `u` with an empty history."""
        self._point = u.reshape(-1).clone()
        self.reset()

    def replace(self, u: Tensor) -> None:
        """Take `u` as the current point instead of the mixed one; the history stays."""
        self._point = u.reshape(-1).clone()

    def clear(self) -> None:
        """Forget the history and the current point; `start` begins anew."""
        self._point = None
        self.reset()

    @property
    def started(self) -> bool:
        """Whether there is a current point."""
        return self._point is not None

    @property
    def point(self) -> Tensor:
        """The current point."""
        if self._point is None:
            raise InputError("AndersonMixer: call start(u) before step(g)")
        return self._point

    def step(self, g: Tensor) -> Tensor:
        """The next point, from `g`, the map's value at the current one; shaped like `g`."""
        value = g.reshape(-1).clone()
        residual = value - self.point
        if self.restart and self._mixed >= self.restart:
            self.reset()
        if self._last is not None:
            self._d_residual.append(residual - self._last[0])
            self._d_value.append(value - self._last[1])
        self._last = (residual, value)
        self._point = value - self._correction(residual)
        return self._point.reshape(g.shape)

    def _correction(self, residual: Tensor) -> Tensor:
        if not self._d_residual:
            return torch.zeros_like(residual)
        columns = torch.stack(tuple(self._d_residual), 1)
        scale = columns.norm(dim=0).clamp_min(torch.finfo(columns.dtype).tiny)
        theta = torch.linalg.pinv(columns / scale, rtol=self.rcond) @ residual / scale
        mixed = torch.stack(tuple(self._d_value), 1) @ theta
        if not bool(torch.isfinite(mixed).all()):
            self.reset()
            return torch.zeros_like(residual)
        self._mixed += 1
        return mixed
