"""Random graphs whose node features and edge weights are jointly Gaussian: both partial scores are exact."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.numerics.noise import Schedule


@dataclass(frozen=True)
class GaussianGraphs:
    """Features `X_i ~ N(0, I)` per node and weights `A_ij = coupling (u.X_i + u.X_j) + spread e_ij`, e standard normal.

    `u` is the unit vector along the diagonal. The law does not change when nodes are renumbered.

    Args:
        nodes: nodes per graph.
        features: features per node.
        coupling: how much weights tell of features.
        spread: standard deviation of what they do not tell.
    """

    nodes: int = 5
    features: int = 2
    coupling: float = 0.5
    spread: float = 0.3

    def __post_init__(self) -> None:
        check.integer("nodes", self.nodes, 2)
        check.integer("features", self.features, 1)
        check.nonnegative("coupling", self.coupling)
        check.positive("spread", self.spread)

    @property
    def edges(self) -> Tensor:
        """Pairs of nodes, (2, nodes (nodes - 1)/2), in the order of the upper triangle."""
        return torch.triu_indices(self.nodes, self.nodes, 1)

    @property
    def covariance(self) -> Tensor:
        """Of features (node by node) and then weights, float64."""
        return _covariance(self)

    def pack(self, x: Tensor, adj: Tensor) -> Tensor:
        """Vectors (batch, nodes features + edges) of graphs."""
        first, second = self.edges
        return torch.cat((x.flatten(1), adj[:, first, second]), 1)

    def unpack(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Features and symmetric weights of vectors."""
        first, second = self.edges
        count = self.nodes * self.features
        adj = z.new_zeros(len(z), self.nodes, self.nodes)
        adj[:, first, second] = adj[:, second, first] = z[:, count:]
        return z[:, :count].reshape(-1, self.nodes, self.features), adj

    def network(self, features: Schedule, adjacency: Schedule) -> Callable[..., tuple[Tensor, Tensor]]:
        """The exact pair of scores `fn(x, adj, mask, t)` of noisy graphs; all nodes present, all times equal."""
        count = self.nodes * self.features
        solved: dict[float, Tensor] = {}

        def precision(t: float) -> Tensor:
            if t not in solved:
                alpha = torch.full((len(self.covariance),), adjacency.alpha(t), dtype=torch.float64)
                sigma = torch.full_like(alpha, adjacency.sigma(t))
                alpha[:count], sigma[:count] = features.alpha(t), features.sigma(t)
                noisy = alpha[:, None] * self.covariance * alpha + torch.diag(sigma.square())
                solved[t] = torch.linalg.inv(noisy)
            return solved[t]

        def scores(x: Tensor, adj: Tensor, mask: Any, t: Tensor) -> tuple[Tensor, Tensor]:
            return self.unpack(-self.pack(x, adj) @ precision(float(t[0])).to(x))

        return scores


@lru_cache(maxsize=64)
def _covariance(law: GaussianGraphs) -> Tensor:
    first, second = law.edges
    edge = torch.arange(first.numel())
    incidence = torch.zeros(first.numel(), law.nodes, dtype=torch.float64)
    incidence[edge, first] = incidence[edge, second] = 1.0
    along = torch.full((1, law.features), law.features**-0.5, dtype=torch.float64)
    loading = law.coupling * torch.kron(incidence, along)
    weights = loading @ loading.mT + law.spread**2 * torch.eye(first.numel(), dtype=torch.float64)
    identity = torch.eye(law.nodes * law.features, dtype=torch.float64)
    return torch.cat((torch.cat((identity, loading.mT), 1), torch.cat((loading, weights), 1)))
