"""What the tests of guidance share: a conditional mixture, and a toy network with two conditions."""

from __future__ import annotations

from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from hasten.diffusion import Denoiser, DiscreteVP, VPLinear
from hasten.numerics.mixture import classes


class Classes(NamedTuple):
    """Sixteen samples of six classes with exact scores."""

    denoiser: Denoiser
    noise: Tensor


@pytest.fixture(scope="session")
def six() -> Classes:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (16,), generator=generator)
    noise = torch.randn(16, 8, dtype=torch.float64, generator=generator)
    return Classes(classes().denoiser(VPLinear()).given(labels), noise)


@pytest.fixture(scope="session")
def toy() -> Denoiser:
    """`eps(x, c) = 0.6 x + 0.3 sin(2x + c)`, c = 1 under the condition and 0 without, on latent diffusion's levels."""

    def network(x: Tensor, t: Tensor, cond: Tensor) -> Tensor:
        return 0.6 * x + 0.3 * torch.sin(2 * x + cond[:, None])

    denoiser = Denoiser(network, DiscreteVP.scaled_linear(), null=0.0)
    return denoiser.given(torch.ones(2, dtype=torch.float64))
