"""Unlike quadratics on many clients, with everything in closed form: the test bed of federated methods."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.federate import Federation
from hasten.core.problem import Problem
from hasten.numerics import keys


class HeteroQuadratic(Federation):
    """f_i(x) = x'A_i x/2 - b_i'x, b_i ~ zeta N(0, I); the answer's metric is |x - x*|/|x*|, the start is 0.

    Gradients come with Gaussian noise of standard deviation `noise` in every entry.

    Attributes:
        A, b: `[n, d, d]` and `[n, d]`, float64.
        solution: x*, `[d]`.
        L, mu: largest and smallest eigenvalue of the mean Hessian.
        L_i: largest eigenvalue of each client's Hessian, `[n]`.
        heterogeneity: root of mean |grad f_i(x*)|^2.
    """

    def __init__(self, A: Tensor, b: Tensor, noise: float = 0.0) -> None:
        self.A, self.b = A, b
        n, d = b.shape
        mean = A.mean(0)
        self.solution = torch.linalg.solve(mean, b.mean(0))
        spectrum = torch.linalg.eigvalsh(mean)
        self.mu, self.L = float(spectrum[0]), float(spectrum[-1])
        self.L_i = torch.linalg.eigvalsh(A)[:, -1]
        self.heterogeneity = math.sqrt(float((A @ self.solution - b).square().sum(1).mean()))
        size = float(self.solution.norm()) or 1.0
        everyone = torch.arange(n)

        def draw(clients: Tensor, steps: int, key: Tensor) -> dict[str, Tensor]:
            same = len(clients) == n and torch.equal(clients, everyone)
            batch = {"A": A if same else A[clients], "b": b if same else b[clients]}
            batch = {name: part.unsqueeze(1).expand(-1, steps, *part.shape[1:]) for name, part in batch.items()}
            if noise:
                batch["noise"] = noise * keys.normal(key, steps * d, b.dtype).view(-1, steps, d)
            return batch

        def gradient(x: Tensor, batch: dict[str, Tensor]) -> Tensor:
            g = batch["A"] @ x - batch["b"]
            return g + batch["noise"] if "noise" in batch else g

        super().__init__(
            n,
            torch.zeros(d, dtype=b.dtype),
            draw,
            lambda x: float((x - self.solution).norm()) / size,
            gradient=gradient,  # type: ignore[arg-type]
        )


@ready("hetero-quadratic", kind="federate")
def hetero_quadratic(
    n: int = 20,
    dim: int = 50,
    zeta: float = 10.0,
    cond: float = 10.0,
    L_spread: float = 1.0,
    noise: float = 0.0,
    shared: bool = False,
) -> Problem:
    """Unlike quadratics on 20 clients: relative distance 1e-6 to the common optimum, known in closed form.

    Args:
        n: clients.
        dim: dimension.
        zeta: size of the linear terms b_i, which pull the clients apart.
        cond: condition number of each client's Hessian, eigenvalues evenly spread (on a log scale) from 1/cond to 1.
        L_spread: factor on the whole function of the first client.
        noise: standard deviation of the gradient noise in every entry.
        shared: one Hessian for all clients, so that the mean is as ill-conditioned as each; otherwise random
            eigenbases, whose mean is well-conditioned.
    """
    check.integer("n", n, 1)
    check.integer("dim", dim, 1)
    check.positive("zeta", zeta)
    check.real("cond", cond, 1.0)
    check.positive("L_spread", L_spread)
    check.nonnegative("noise", noise)

    def build(seed: int) -> HeteroQuadratic:
        generator = torch.Generator().manual_seed(seed)
        spectrum = torch.logspace(-math.log10(cond), 0.0, dim, dtype=torch.float64)
        raw = torch.randn(1 if shared else n, dim, dim, generator=generator, dtype=torch.float64)
        basis = torch.linalg.qr(raw).Q
        A = ((basis * spectrum) @ basis.mT).expand(n, dim, dim).clone()
        b = zeta * torch.randn(n, dim, generator=generator, dtype=torch.float64)
        A[0] *= L_spread
        b[0] *= L_spread
        return HeteroQuadratic((A + A.mT) / 2, b, noise)

    return Problem(
        "hetero-quadratic",
        Federation.kind,
        build,
        measures="relative distance to the optimum",
        target=0.1 if noise else 1e-6,
        budget=500,
        every=5,
        cost="bytes",
        summary=f"{n} quadratics of dimension {dim}, zeta {zeta:g}, condition {cond:g}, noise {noise:g}",
        baseline="distributed.dp-sgd",
        contenders=("distributed.dp-sgd", "distributed.ef14", "distributed.ef21", "distributed.econtrol"),
    )
