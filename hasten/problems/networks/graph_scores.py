"""A pair of scores for graphs, trained on graphs of two communities."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.numerics.noise import VPLinear
from hasten.problems.networks.recipe import Report, fit, recipe

NODES = 20
T_MIN = 1e-3


def community_graphs(count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Graphs of two equal communities, 12 to 20 nodes in all: adjacency (count, 20, 20) and mask (count, 20).

    Nodes of a community, h in each, are joined with probability 0.7, others with 0.1/h, and by one edge at least.
    """
    generator = torch.Generator().manual_seed(seed)
    half = torch.randint(6, 11, (count,), generator=generator)
    index = torch.arange(NODES)
    mask = index < 2 * half[:, None]
    side = index >= half[:, None]
    same = side[:, :, None] == side[:, None]
    chance = torch.where(same, 0.7, (0.1 / half)[:, None, None])
    there = mask[:, :, None] & mask[:, None]
    adj = ((torch.rand(count, NODES, NODES, generator=generator) < chance) & there).triu(1)
    apart = ~(adj & ~same).any(2).any(1)
    adj[apart, 0, half[apart]] = True
    adj = adj.float()
    return adj + adj.mT, mask


def encoded(adj: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Features and weights of graphs for diffusion: the degree, centred and scaled, and edges as 1 or -1."""
    pairs = (mask[:, :, None] & mask[:, None]) & ~torch.eye(adj.shape[1], dtype=torch.bool)
    degrees = (adj.sum(2, keepdim=True) - 5.0) / 2.5
    return degrees * mask[..., None], (2.0 * adj - 1.0) * pairs


class PairLayer(nn.Module):
    """One layer on features of pairs of nodes: products along paths of two edges, sums over rows and over all."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.left = nn.Linear(width, width // 2, bias=False)
        self.right = nn.Linear(width, width // 2, bias=False)
        self.mlp = nn.Sequential(nn.Linear(3 * width + width // 2, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))

    def forward(self, h: Tensor, there: Tensor, count: Tensor) -> Tensor:
        z = self.norm(h) * there
        paths = torch.einsum("bikc,bkjc->bijc", self.left(z), self.right(z)) / count[..., None].sqrt()
        row = z.sum(2) / count
        total = (row.sum(1, keepdim=True) / count)[:, None].expand_as(z)
        parts = (z, 0.5 * (paths + paths.transpose(1, 2)), row[:, :, None] + row[:, None], total)
        return (h + self.mlp(torch.cat(parts, -1))) * there


class GraphScores(nn.Module):
    """Noise in node features and adjacency, `(x, adj, mask, t) -> (like x, like adj)`; nodes in any order.

    Args:
        features: per node.
        width: channels of a pair of nodes.
        depth: layers.
    """

    def __init__(self, features: int = 1, width: int = 24, depth: int = 3) -> None:
        super().__init__()
        self.embed = nn.Linear(4 + 2 * features, width)
        self.blocks = nn.ModuleList(PairLayer(width) for _ in range(depth))
        self.edge = nn.Linear(width, 1)
        self.node = nn.Sequential(nn.Linear(width + features + 1, width), nn.SiLU(), nn.Linear(width, features))

    def forward(self, x: Tensor, adj: Tensor, mask: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        batch, n, _ = x.shape
        there = (mask[:, :, None] & mask[:, None]).to(x)[..., None]
        count = mask.sum(1).to(x)[:, None, None]
        shape = (batch, n, n, 1)
        known = (adj[..., None], t[:, None, None, None].expand(shape), (count[..., None] / NODES).expand(shape))
        loops = torch.eye(n, device=x.device, dtype=x.dtype)[..., None].expand(shape)
        ends = (x[:, :, None] + x[:, None], (x[:, :, None] - x[:, None]).abs())
        h = self.embed(torch.cat((*known, loops, *ends), -1)) * there
        for block in self.blocks:
            h = block(h, there, count)
        edges = self.edge(h)[..., 0]
        nodes = torch.cat((h.sum(2) / count, x, t[:, None, None].expand(batch, n, 1)), -1)
        return self.node(nodes), 0.5 * (edges + edges.mT)


@recipe("community-graphs", GraphScores, summary="pair of scores for graphs of two communities with 12 to 20 nodes")
def train_communities(model: nn.Module, report: Report, steps: int = 600, batch: int = 24, count: int = 100) -> float:
    """Noise prediction for both parts, on the variance-preserving schedule with beta from 0.1 to 20."""
    adj, mask = community_graphs(count, 0)
    features, weights = encoded(adj, mask)
    schedule = VPLinear()

    def loss(net: nn.Module, generator: torch.Generator) -> Tensor:
        index = torch.randint(count, (batch,), generator=generator)
        present = mask[index]
        t = T_MIN + (1.0 - T_MIN) * torch.rand(batch, generator=generator)
        alpha, sigma = schedule.alpha(t)[:, None, None], schedule.sigma(t)[:, None, None]
        z_x = torch.randn(batch, NODES, features.shape[2], generator=generator)
        z_adj = torch.randn(batch, NODES, NODES, generator=generator).triu(1)
        nodes = present[..., None].expand_as(z_x)
        pairs = weights[index] != 0
        z_x, z_adj = z_x * nodes, (z_adj + z_adj.mT) * pairs
        told = net(alpha * features[index] + sigma * z_x, alpha * weights[index] + sigma * z_adj, present, t)
        return 0.5 * (F.mse_loss(told[0][nodes], z_x[nodes]) + F.mse_loss(told[1][pairs], z_adj[pairs]))

    return fit(model, loss, report, steps=steps, lr=3e-3)
