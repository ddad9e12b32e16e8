"""What the tests of the samplers share: the standard mixture with its exact solution, and a bounded toy network."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hasten.diffusion import Denoiser, DiscreteVP, VPLinear
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rk4_lambda


class Bench:
    """The standard mixture under VP: `noise`, the `exact` samples from it, the `denoiser`."""

    def __init__(self) -> None:
        self.denoiser = circle().denoiser(VPLinear())
        self.noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        self.exact = rk4_lambda(self.denoiser, self.noise, steps=800)


@pytest.fixture(scope="session")
def bench() -> Bench:
    return Bench()


@pytest.fixture(scope="session")
def start() -> Tensor:
    """Four numbers to start golden trajectories from."""
    return torch.tensor([[-1.5, -0.2], [0.4, 1.1]], dtype=torch.float64)


@pytest.fixture(scope="session")
def wave() -> Denoiser:
    """`eps(x, t) = 0.3 x + 0.5 sin(2x) cos(3t)` under VP with beta from 0.1 to 20."""
    return Denoiser(lambda x, t: 0.3 * x + 0.5 * torch.sin(2 * x) * torch.cos(3 * t.reshape(-1, 1)), VPLinear())


@pytest.fixture(scope="session")
def ladder(bounded: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    """The `bounded` network on a thousand discrete levels with linear betas."""
    schedule = DiscreteVP.linear()

    def network(x: Tensor, t: Tensor) -> Tensor:
        return bounded(x, schedule.rho(t.double()).to(x).reshape(-1, 1))

    return Denoiser(network, schedule)


@pytest.fixture(scope="session")
def bounded() -> Callable[[Tensor, Tensor], Tensor]:
    """A network of x and the noise-to-signal ratio: noise of Gaussian data with variance 1/4, and a wave on it."""

    def network(x: Tensor, rho: Tensor) -> Tensor:
        return rho * (1 + rho * rho).sqrt() * x / (0.25 + rho * rho) + 0.1 * torch.sin(2 * x)

    return network
