"""Entropic optimal transport problems."""

from __future__ import annotations

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.transport import Transport, transport
from hasten.core.problem import Problem


@ready("random-transport", Transport.kind)
def random_transport(n: int = 200, eta: float = 500.0) -> Problem:
    """Entropic assignment: uniform masses on n + n points, independent uniform costs, entropy of strength 1/eta.

    The metric is the marginal error in L1.

    Args:
        n: points on each side.
        eta: inverse strength of the entropy; the larger, the harder.
    """
    check.integer("n", n, 2)
    check.positive("eta", eta)

    def build(seed: int) -> tuple[Tensor, Tensor, Tensor]:
        generator = torch.Generator().manual_seed(seed)
        mass = torch.full((n,), 1.0 / n, dtype=torch.float64)
        return mass, mass, torch.rand(n, n, generator=generator, dtype=torch.float64)

    return transport(
        "random-transport",
        build,
        1.0 / eta,
        target=1e-6,
        budget=10000,
        summary="Random assignment with weak entropy: Sinkhorn needs thousands of rounds.",
    )
