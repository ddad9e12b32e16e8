"""Kind `transport`: entropic optimal transport between two histograms."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError
from hasten.core.problem import Instance, Problem


class Transport(Instance):
    """Entropic transport: the plan P >= 0 with marginals a and b that minimises `<P, M> + reg sum P (log P - 1)`.

    The answer (`state.x`) is the stacked vector (f, g) of dual potentials; `plan` turns it into
    `P_ij = exp((f_i + g_j - M_ij)/reg)`. They maximise the concave dual `a.f + b.g - reg sum P`.
    Points without mass are left out of the potentials and get empty rows or columns in the final `coupling`.

    Oracles: `sinkhorn` (one round: rows, then columns), `plan`, `hessian` (counted as `newton`) and the products
    with it (`product`).

    Args:
        a: (n,) source masses.
        b: (m,) target masses, of the same total.
        M: (n, m) costs.
        reg: strength of the entropy, > 0, in the unit of the costs.

    The metric is the marginal error `|P1 - a|_1 + |P'1 - b|_1`.
    """

    kind = "transport"

    def __init__(self, a: Tensor, b: Tensor, M: Tensor, reg: float) -> None:
        super().__init__()
        _validate(a, b, M, reg)
        self.shape = tuple(M.shape)
        self.rows, self.columns = a.nonzero().squeeze(1), b.nonzero().squeeze(1)
        self.a, self.b = a[self.rows], b[self.columns]
        self.M = M[self.rows][:, self.columns]
        self.reg = float(reg)
        self._log_a, self._log_b = self.a.log(), self.b.log()
        self.x0 = torch.zeros(len(self.a) + len(self.b), dtype=M.dtype, device=M.device)
        # The plan of the last potentials: a solver's last oracle call and the metric after it ask for the same one.
        self._last: tuple[Tensor | None, int, Tensor] = (None, 0, self.M)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The potentials of the rows and of the columns."""
        return x[: len(self.a)], x[len(self.a) :]

    def sinkhorn(self, x: Tensor) -> Tensor:
        """Potentials after one round in the log domain: match the row sums, then the column sums."""
        self.calls["sinkhorn"] += 1
        _, g = self.split(x)
        reg, cost = self.reg, self.M / self.reg
        f = reg * (self._log_a - torch.logsumexp(g / reg - cost, 1))
        g = reg * (self._log_b - torch.logsumexp((f / reg).unsqueeze(1) - cost, 0))
        return torch.cat((f, g))

    def plan(self, x: Tensor) -> Tensor:
        """The plan of the potentials, over the points that have mass."""
        self.calls["plan"] += 1
        return self._plan(x)

    def hessian(self, plan: Tensor, kept: int) -> tuple[Callable[[Tensor], Tensor], Tensor]:
        """`-reg` times the dual's Hessian at `plan`, sparsified: its product with a vector, and its diagonal.

        It is `[[diag(P1), P], [P', diag(P'1)]]`, with only the `kept` largest entries of the blocks P and P'
        (the diagonal stays exact, so that it remains positive semidefinite).
        """
        self.calls["newton"] += 1
        rows, columns = plan.shape
        values, flat = torch.topk(plan.reshape(-1), min(kept, plan.numel()), sorted=False)
        i, j = flat // columns, flat % columns
        diagonal = torch.cat((plan.sum(1), plan.sum(0)))

        def product(v: Tensor) -> Tensor:
            self.calls["product"] += 1
            result = diagonal * v
            result.index_add_(0, i, values * v[rows + j])
            return result.index_add_(0, rows + j, values * v[i])

        return product, diagonal

    def coupling(self, x: Tensor) -> Tensor:
        """The plan over all points, (n, m); not counted."""
        full = self.M.new_zeros(self.shape)
        full[self.rows.unsqueeze(1), self.columns] = self._plan(x)
        return full

    def error(self, plan: Tensor) -> float:
        """Marginal error of a plan, in L1."""
        return float((plan.sum(1) - self.a).abs().sum() + (plan.sum(0) - self.b).abs().sum())

    def metric(self, x: Tensor) -> float:
        return self.error(self._plan(x))

    def _plan(self, x: Tensor) -> Tensor:
        known, version, plan = self._last
        if known is not x or version != x._version:
            f, g = self.split(x)
            plan = ((f.unsqueeze(1) + g - self.M) / self.reg).exp()
            self._last = (x, x._version, plan)
        return plan


def _validate(a: Tensor, b: Tensor, M: Tensor, reg: float) -> None:
    check.positive("reg", reg)
    if M.shape != (len(a), len(b)):
        raise InputError(f"M must be of shape ({len(a)}, {len(b)}), the lengths of a and b; got {tuple(M.shape)}")
    for name, value in (("a", a), ("b", b), ("M", M)):
        if not value.is_floating_point() or not bool(torch.isfinite(value).all()):
            raise InputError(f"{name} must hold finite floating-point numbers")
    for name, value in (("a", a), ("b", b)):
        if bool((value < 0).any()):
            raise InputError(f"{name} must hold masses of at least zero; its smallest is {float(value.min()):g}")
    mass_a, mass_b = float(a.sum()), float(b.sum())
    if not mass_a > 0 or abs(mass_a - mass_b) > 1e-6 * max(mass_a, mass_b):
        raise InputError(f"a and b must have one total mass > 0, got {mass_a:g} and {mass_b:g}; normalise them")


def transport(name: str, build: Callable[[int], tuple[Tensor, Tensor, Tensor]], reg: float, **options: Any) -> Problem:
    """An entropic transport problem of your own.

    Args:
        build: seed -> (a, b, M); see `Transport`.
        reg: strength of the entropy, > 0.
        options: fields of `Problem`: `target`, `budget`, ...
    """
    check.positive("reg", reg)
    options.setdefault("measures", "marginal error")
    options.setdefault("baseline", "solve.sinkhorn")
    return Problem(name=name, kind=Transport.kind, build=lambda seed: Transport(*build(seed), reg), **options)
