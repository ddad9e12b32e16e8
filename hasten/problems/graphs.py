"""Node classification on the Cora citation graph."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.train import training
from hasten.core.problem import Problem
from hasten.problems.data import load
from hasten.problems.evaluate import held_out


class Graph:
    """Word frequencies of every node and the symmetrically normalised adjacency; shared between copies of networks.

    Attributes:
        words: (nodes, words) sparse, rows sum to one.
        mixing: (nodes, nodes) sparse, `D^-1/2 (A + I) D^-1/2`.
        labels: (nodes,) classes.
        split: node indices by `train`, `val` and `test`.
    """

    def __init__(self) -> None:
        arrays = {key: torch.tensor(array) for key, array in load("cora").items()}
        x, edges = arrays["x"], arrays["edges"]
        self.words = (x / x.sum(1, keepdim=True).clamp(min=1)).to_sparse()
        nodes = torch.arange(len(x))
        index = torch.cat([edges.T, edges.flip(1).T, torch.stack([nodes, nodes])], 1)
        scale = torch.bincount(index[0]).rsqrt()
        weights = scale[index[0]] * scale[index[1]]
        self.mixing = torch.sparse_coo_tensor(index, weights, (len(x), len(x)), check_invariants=False).coalesce()
        self.labels = arrays["y"]
        self.split = {part: arrays[part] for part in ("train", "val", "test")}

    def __deepcopy__(self, memo: Any) -> Graph:
        return self


@cache
def cora_graph() -> Graph:
    """The Cora graph, prepared once."""
    return Graph()


class GCN(nn.Module):
    """Two graph convolutions: node indices (n,) -> logits (n, 7)."""

    def __init__(self, graph: Graph, width: int, dropout: float) -> None:
        super().__init__()
        self.graph = graph
        self.dropout = dropout
        self.first = nn.Linear(graph.words.shape[1], width, bias=False)
        self.second = nn.Linear(width, 7)
        nn.init.xavier_uniform_(self.first.weight)
        nn.init.xavier_uniform_(self.second.weight)

    def forward(self, nodes: Tensor) -> Tensor:
        hidden = F.relu(self.graph.mixing @ (self.graph.words @ self.first.weight.T))
        hidden = F.dropout(hidden, self.dropout, self.training)
        return self.second(self.graph.mixing @ hidden)[nodes]


@ready("cora", kind="train")
def cora(width: int = 16, dropout: float = 0.5) -> Problem:
    """Node classification on the Cora citation graph (2,708 papers, downloaded once), two graph convolutions.

    Args:
        width: hidden units.
        dropout: share of hidden units dropped in training, in [0, 1).
    """
    check.integer("width", width, 1)
    check.fraction("dropout", dropout)

    def part(name: str) -> tuple[Tensor, Tensor]:
        graph = cora_graph()
        return graph.split[name], graph.labels[graph.split[name]]

    return training(
        "cora",
        lambda: GCN(cora_graph(), width, dropout),
        lambda: part("train"),
        F.cross_entropy,
        batch_size=140,
        metric=held_out(F.cross_entropy, lambda: part("test")),
        measures="test cross entropy",
        target=0.7,
        budget=300,
        every=5,
        summary="two graph convolutions, 140 labelled nodes, 1,000 test nodes",
    )
