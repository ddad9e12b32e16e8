"""Phase-space Langevin diffusion: each coordinate of the data gets a momentum, and noise enters through both."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import DivergedError, InputError
from hasten.numerics.mixture import GaussianMixture

Network = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class PSLD:
    """The forward process of position x and momentum m, critically damped, with its exact kernel.

    `dx = beta/2 (m/M - gamma x) dt + sqrt(beta gamma) dW`, `dm = beta/2 (-nu m - x) dt + sqrt(beta M nu) dW`,
    `1/M = (gamma - nu)^2/4`, from `m_0 ~ N(0, kappa M)`. It ends near `x ~ N(0, 1)`, `m ~ N(0, M)`. States z are
    tensors of shape (batch, 2, ...): positions first, momenta second.

    Args:
        nu: friction of the momentum.
        gamma: friction of the position, other than nu.
        beta: rate of the process.
        kappa: variance of the momentum at the start, in units of M.
        T: length of the process.
        t_min: where samplers end.

    Source: Pandey & Mandt (2023), arXiv 2303.01748.
    """

    nu: float = 4.01
    gamma: float = 0.01
    beta: float = 8.0
    kappa: float = 0.04
    T: float = 1.0
    t_min: float = 1e-2

    def __post_init__(self) -> None:
        check.nonnegative("nu", self.nu)
        check.nonnegative("gamma", self.gamma)
        if self.nu == self.gamma:
            raise InputError(f"nu and gamma must differ (the mass is 4/(nu - gamma)^2), got {self.nu} for both")
        for name in ("beta", "kappa", "T"):
            check.positive(name, getattr(self, name))
        check.real("t_min", self.t_min, 0.0, self.T, open_high=True)

    @property
    def mass(self) -> float:
        """M."""
        return 4.0 / (self.gamma - self.nu) ** 2

    @property
    def drift(self) -> Tensor:
        """The matrix A of `dz = A z dt + G dW`, shape (2, 2)."""
        rows = [[-self.gamma, 1.0 / self.mass], [-1.0, -self.nu]]
        return 0.5 * self.beta * torch.tensor(rows, dtype=torch.float64)

    @property
    def diffusion2(self) -> tuple[float, float]:
        """Squared diffusion coefficients of position and momentum, the diagonal of `G^2`."""
        return self.beta * self.gamma, self.beta * self.mass * self.nu

    def kernel(self, t: float) -> tuple[Tensor, Tensor]:
        """Factor F of the mean, `E[z_t | z_0] = F z_0`, and covariance given x_0, both of shape (2, 2).

        Given x_0, the momentum at the start is random.
        """
        return _kernel(self, float(t))

    def prior(self, shape: tuple[int, ...], generator: torch.Generator | None = None) -> Tensor:
        """Start states of a batch of this shape, (batch, 2, ...), float64."""
        made = torch.randn(shape[0], 2, *shape[1:], dtype=torch.float64, generator=generator)
        made[:, 1] *= self.mass**0.5
        return made


@lru_cache(maxsize=4096)
def _kernel(process: PSLD, t: float) -> tuple[Tensor, Tensor]:
    """Both from one exponential of a block matrix (Van Loan)."""
    drift = process.drift
    block = torch.zeros(4, 4, dtype=torch.float64)
    block[:2, :2], block[2:, 2:] = -drift, drift.mT
    block[:2, 2:] = torch.diag(torch.tensor(process.diffusion2, dtype=torch.float64))
    grown = torch.linalg.matrix_exp(block * t)
    factor = grown[2:, 2:].mT
    covariance = factor @ grown[:2, 2:]
    momentum = factor[:, 1:]
    covariance = covariance + process.kappa * process.mass * momentum @ momentum.mT
    return factor, 0.5 * (covariance + covariance.mT)


class PhaseDenoiser:
    """A network on phase space, asked for the score of (x, m).

    Args:
        fn: the network, `fn(z, t)` with z of shape (batch, 2, ...) and t of shape (batch,); returns a tensor like z.
        schedule: the process it was trained with.
        prediction: `score`, or `epsilon`, from which the score is `-L^{-T} eps` with L the Cholesky factor of the
            covariance given x_0.

    Raises:
        InputError: the output has another shape than z.
        DivergedError: the output is not finite.
    """

    def __init__(self, fn: Network, schedule: PSLD, prediction: str = "epsilon") -> None:
        if not isinstance(schedule, PSLD):
            raise InputError(f"schedule must be a PSLD process, got {schedule!r}")
        self.fn = fn
        self.schedule = schedule
        self.prediction = check.one_of("prediction", prediction, ("epsilon", "score"))
        self._count: Callable[[int], Any] | None = None
        self._batch = 1

    def counted(self, count: Callable[[int], Any], batch: int) -> PhaseDenoiser:
        """The same network, calling `count(evaluations per sample)` at each call."""
        made = copy.copy(self)
        made._count, made._batch = count, batch
        return made

    def score(self, z: Tensor, t: float) -> Tensor:
        """Gradient of the log density of states at z. One evaluation."""
        if z.ndim < 3 or z.shape[1] != 2:
            raise InputError(f"states must have shape (batch, 2, ...), positions and momenta; got {tuple(z.shape)}")
        output = self.fn(z, z.new_full((len(z),), t))
        if self._count is not None:
            self._count(-(-len(z) // self._batch))
        if not isinstance(output, Tensor) or output.shape != z.shape:
            got = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
            raise InputError(f"the network must return a tensor of z's shape {tuple(z.shape)}, got {got} at t={t:.4g}")
        if not bool(output.isfinite().all()):
            raise DivergedError(f"the network returned nan or infinity at t={t:.4g}")
        if self.prediction == "score":
            return output
        factor = torch.linalg.cholesky(self.schedule.kernel(t)[1])
        pull = torch.linalg.inv(factor).mT.to(output)
        return -torch.einsum("ij,bj...->bi...", pull, output)

    @torch.no_grad()
    def solve(self, noise: Tensor, steps: int = 400) -> Tensor:
        """The exact probability-flow ODE from `noise` at T to t_min: Runge-Kutta 4 in t, float64."""
        process = self.schedule
        drift = process.drift.to(noise.device)
        half = 0.5 * torch.tensor(process.diffusion2, dtype=torch.float64, device=noise.device)

        def rate(z: Tensor, t: float) -> Tensor:
            pull = torch.einsum("i,bi...->bi...", half, self.score(z, t))
            return pull - torch.einsum("ij,bj...->bi...", drift, z)

        h = (process.T - process.t_min) / check.integer("steps", steps, 1)
        z = noise.double()
        for i in range(steps):
            t = process.T - i * h
            k1 = rate(z, t)
            k2 = rate(z + 0.5 * h * k1, t - 0.5 * h)
            k3 = rate(z + 0.5 * h * k2, t - 0.5 * h)
            k4 = rate(z + h * k3, t - h)
            z = z + (h / 6.0) * (k1 + 2.0 * (k2 + k3) + k4)
        return z


def lift(mixture: GaussianMixture, process: PSLD) -> PhaseDenoiser:
    """The exact score on phase space of data from a mixture with axis-parallel components.

    A component's states are Gaussian, each coordinate with its momentum on its own: mean `F (mu, 0)`, covariance
    `variance F_x F_x^T` plus the kernel's.
    """
    if mixture._axes is not None:
        raise InputError("the mixture's components must have variances along the axes, not full covariances")
    constants: dict[float, tuple[Tensor, Tensor, Tensor]] = {}

    def at(t: float) -> tuple[Tensor, Tensor, Tensor]:
        if t not in constants:
            factor, noise = process.kernel(t)
            means = factor[:, 0, None] * mixture.means[:, None]
            covariance = mixture.variances[..., None, None] * torch.outer(factor[:, 0], factor[:, 0]) + noise
            log_weights = mixture.weights.log() - 0.5 * torch.linalg.slogdet(covariance)[1].sum(-1)
            constants[t] = means, torch.linalg.inv(covariance), log_weights
        return constants[t]

    def network(z: Tensor, t: Tensor) -> Tensor:
        means, inverse, log_weights = (part.to(z) for part in at(float(t[0])))
        offset = z[:, None] - means
        pull = torch.einsum("kdij,bkjd->bkid", inverse, offset)
        share = (log_weights - 0.5 * (offset * pull).sum((-1, -2))).softmax(1)
        return -(share[..., None, None] * pull).sum(1)

    return PhaseDenoiser(network, process, "score")
