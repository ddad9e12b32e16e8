"""The pair of scores for graphs: its data, its symmetry, missing nodes, and that it learns."""

from __future__ import annotations

import math
from typing import Any

import torch

from hasten.numerics.graph_metrics import degree_mmd
from hasten.problems.networks.graph_scores import GraphScores, community_graphs, encoded, train_communities


def small() -> GraphScores:
    torch.manual_seed(0)
    return GraphScores(width=8, depth=2)


def test_graphs_have_two_communities() -> None:
    adj, mask = community_graphs(400, 0)
    half = mask.sum(1) // 2
    assert (int(mask.sum(1).min()), int(mask.sum(1).max())) == (12, 20)
    assert torch.equal(adj, adj.mT)
    assert not adj.diagonal(dim1=1, dim2=2).any()
    assert not adj[~mask].any()
    index = torch.arange(20)
    across = (index < half[:, None])[:, :, None] & ((index >= half[:, None]) & mask)[:, None]
    bridges = (adj * across).sum((1, 2))
    assert float(bridges.min()) >= 1
    inside = (adj.sum((1, 2)) / 2 - bridges).sum() / (half * (half - 1)).sum()
    assert abs(float(inside) - 0.7) < 0.02
    features, weights = encoded(adj, mask)
    assert not features[~mask].any()
    assert set(weights.unique().tolist()) == {-1.0, 0.0, 1.0}


def test_renumbered_nodes_give_renumbered_noise() -> None:
    adj, mask = community_graphs(3, 1)
    x, weights = encoded(adj, mask)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(2))
    t = torch.tensor([0.2, 0.5, 0.9])
    net = small()
    first = net(x, weights, mask, t)
    second = net(x[:, order], weights[:, order][:, :, order], mask[:, order], t)
    torch.testing.assert_close(first[0][:, order], second[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(first[1][:, order][:, :, order], second[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(first[1], first[1].mT)


def test_missing_nodes_change_nothing() -> None:
    adj, mask = community_graphs(2, 3)
    x, weights = encoded(adj, mask)
    keep = int(mask.sum(1).max())
    t = torch.tensor([0.3, 0.6])
    net = small()
    full = net(x, weights, mask, t)
    cut = net(x[:, :keep], weights[:, :keep, :keep], mask[:, :keep], t)
    torch.testing.assert_close(full[1][:, :keep, :keep], cut[1], rtol=0, atol=1e-5)
    torch.testing.assert_close(full[0][:, :keep][mask[:, :keep]], cut[0][mask[:, :keep]], rtol=0, atol=1e-5)


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    train: Any = train_communities
    train(small(), lambda step, steps, loss: losses.append(loss), steps=25, batch=8, count=20)
    assert sum(losses[-5:]) < 0.75 * sum(losses[:5])


def test_degree_mmd_tells_densities_apart() -> None:
    adj, mask = community_graphs(60, 4)
    other, other_mask = community_graphs(60, 5)
    assert degree_mmd(adj, mask, adj, mask) < 1e-9
    assert degree_mmd(adj, mask, other, other_mask) < 0.02
    assert degree_mmd(adj * 0, mask, other, other_mask) > 1.0
    line = torch.tensor([[[0.0, 1.0], [1.0, 0.0]]])
    pair = torch.ones(1, 2)
    expected = 2.0 - 2.0 * math.exp(-0.5)
    assert abs(degree_mmd(line, pair, line * 0, pair) - expected) < 1e-12, "one degree apart: distance 1"
