"""Graphs under noise: batches with masks, the pair of stochastic differential equations, and the pair of scores."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import DivergedError, InputError
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.numerics.noise import Schedule, VPLinear

Pair = tuple[Tensor, Tensor]
Network = Callable[[Tensor, Tensor, Tensor, Tensor], Pair]
Draw = Callable[["Graphs"], Pair]


class Graphs(NamedTuple):
    """A batch of undirected graphs with up to n nodes.

    Attributes:
        x: node features, (batch, n, features).
        adj: adjacency or edge weights, (batch, n, n), symmetric with zero diagonal.
        mask: which nodes there are, (batch, n), True or False.
    """

    x: Tensor
    adj: Tensor
    mask: Tensor

    def masked(self) -> Graphs:
        """The same graphs, with zeros where a node is missing and on the diagonal."""
        return Graphs(*masked(self.x, self.adj, self.mask), self.mask)


def graph_batch(x: Tensor, adj: Tensor, mask: Tensor | None = None) -> Graphs:
    """A checked batch of graphs.

    Args:
        x: node features, (batch, n, features).
        adj: adjacency, (batch, n, n), symmetric with zero diagonal.
        mask: which nodes there are, (batch, n); all if not given.

    Raises:
        InputError: shapes do not fit, adj is not symmetric or has loops, or a graph has no node.
    """
    if x.ndim != 3 or adj.ndim != 3 or adj.shape[1] != adj.shape[2] or x.shape[:2] != adj.shape[:2]:
        raise InputError(
            "x and adj must have shapes (batch, n, features) and (batch, n, n), "
            f"got {tuple(x.shape)} and {tuple(adj.shape)}"
        )
    gap = (adj - adj.mT).abs().amax((1, 2))
    if bool((gap > 1e-6).any()):
        worst = int(gap.argmax())
        raise InputError(
            f"adj must be symmetric, but graph {worst} differs from its transpose by {float(gap[worst]):.3g}; "
            "average it with the transpose"
        )
    loops = adj.diagonal(dim1=1, dim2=2).abs().amax(1)
    if bool((loops > 0).any()):
        worst = int(loops.argmax())
        raise InputError(f"adj must have a zero diagonal, but graph {worst} has a loop of {float(loops[worst]):.3g}")
    return Graphs(x, adj, present(mask if mask is not None else x.new_ones(x.shape[:2]), x.shape[1])).masked()


def present(mask: Tensor, nodes: int | None = None) -> Tensor:
    """A mask of nodes, (batch, n), with at least one node per graph."""
    if mask.ndim != 2 or len(mask) == 0 or nodes not in (None, mask.shape[1]):
        expected = "n" if nodes is None else str(nodes)
        raise InputError(f"mask must have shape (batch, {expected}), got {tuple(mask.shape)}")
    mask = mask.bool()
    empty = ~mask.any(1)
    if bool(empty.any()):
        raise InputError(f"mask leaves graph {int(empty.int().argmax())} without a node; leave that graph out")
    return mask


def masked(x: Tensor, adj: Tensor, mask: Tensor) -> Pair:
    """Zeros where a node is missing, and on the diagonal."""
    edges = (mask[:, :, None] & mask[:, None]) & ~torch.eye(mask.shape[1], dtype=torch.bool, device=mask.device)
    return x * mask[..., None], adj * edges


@dataclass(frozen=True)
class GraphSDE:
    """Node features and adjacency noised independently, each on its own schedule, over the same times.

    The noise of the adjacency is symmetric: a standard normal for every pair of nodes, none on the diagonal.

    Args:
        features: schedule of the node features.
        adjacency: schedule of the adjacency.

    Source: Jo, Lee & Hwang (2022), arXiv 2202.02514.
    """

    features: Schedule = field(default_factory=VPLinear)
    adjacency: Schedule = field(default_factory=VPLinear)

    def __post_init__(self) -> None:
        for name in ("features", "adjacency"):
            if not isinstance(getattr(self, name), Schedule):
                raise InputError(f"{name} must be a schedule, e.g. VPLinear(); got {getattr(self, name)!r}")
        if self.features.T != self.adjacency.T:
            raise InputError(
                f"both schedules must begin at the same time, got T={self.features.T:g} for features and "
                f"T={self.adjacency.T:g} for the adjacency"
            )

    @property
    def t_min(self) -> float:
        """Where samplers end: the later of the two schedules' ends."""
        return max(self.features.t_min, self.adjacency.t_min)

    @property
    def schedules(self) -> tuple[Schedule, Schedule]:
        """Of features and adjacency."""
        return self.features, self.adjacency

    def noisy(self, clean: Graphs, t: Tensor, draw: Draw) -> tuple[Graphs, Pair]:
        """Graphs at times t, (batch,), and the noise in them."""
        noise = draw(clean)
        parts = [
            schedule.alpha(t)[:, None, None].to(part) * part + schedule.sigma(t)[:, None, None].to(part) * eps
            for schedule, part, eps in zip(self.schedules, clean[:2], noise)
        ]
        return Graphs(parts[0], parts[1], clean.mask), noise

    def losses(self, network: Network, clean: Graphs, draw: Draw, times: Tensor) -> Pair:
        """Denoising losses of features and adjacency, for a network that predicts both noises.

        Each is the mean squared error per entry of one part, predicted from both noisy parts: `1/2 |eps - eps(x, adj,
        t)|^2` summed over existing nodes (pairs), over their number. Differentiable.

        Args:
            times: in [t_min, T], (batch,).
        """
        state, noise = self.noisy(clean, times, draw)
        answer = masked(*network(*state, times), clean.mask)
        counts = Graphs(torch.ones_like(clean.x), torch.ones_like(clean.adj), clean.mask).masked()[:2]
        first, second = (
            0.5 * (told - eps).square().sum() / count.sum().clamp(min=1)
            for told, eps, count in zip(answer, noise, counts)
        )
        return first, second


@dataclass(frozen=True)
class GraphNoise:
    """Standard normal noise for graphs: features first, then the adjacency, mirrored from its upper triangle."""

    generator: torch.Generator

    def __call__(self, like: Graphs) -> Pair:
        x = standard_normal(like.x, self.generator)
        upper = standard_normal(like.adj, self.generator).triu(1)
        return masked(x, upper + upper.mT, like.mask)


class GraphDenoiser:
    """A network for graphs, asked for both scores.

    Args:
        fn: `fn(x, adj, mask, t)` with t of shape (batch,) and mask of True and False; returns a pair like x and adj,
            the second symmetric. What it returns for missing nodes is ignored.
        sde: the process it was trained with.
        prediction: `epsilon`, from which the score is `-eps/sigma`, or `score`.

    Raises:
        InputError: an output has another shape, or the second is not symmetric.
        DivergedError: an output is not finite.
    """

    def __init__(self, fn: Network, sde: GraphSDE, prediction: str = "epsilon") -> None:
        if not callable(fn):
            raise InputError(f"fn must be a network or function of (x, adj, mask, t), got {fn!r}")
        if not isinstance(sde, GraphSDE):
            raise InputError(f"sde must be a GraphSDE, got {sde!r}")
        self.fn = fn
        self.sde = sde
        self.prediction = check.one_of("prediction", prediction, ("epsilon", "score"))
        self._count: Callable[[int], Any] | None = None

    def counted(self, count: Callable[[int], Any]) -> GraphDenoiser:
        """The same network, calling `count(1)` at each call."""
        made = copy.copy(self)
        made._count = count
        return made

    def scores(self, state: Graphs, t: float) -> Pair:
        """Gradients of the joint log density by features and by adjacency, at time t. One evaluation."""
        outputs = self.fn(*state, state.x.new_full((len(state.x),), t))
        if self._count is not None:
            self._count(1)
        shapes = tuple(state.x.shape), tuple(state.adj.shape)
        got = tuple(tuple(output.shape) for output in outputs)
        if got != shapes:
            raise InputError(f"the network must return tensors of shapes {shapes}, got {got} at t={t:.4g}")
        x, adj = masked(*outputs, state.mask)
        if not bool(x.isfinite().all()) or not bool(adj.isfinite().all()):
            raise DivergedError(f"the network returned nan or infinity at t={t:.4g}")
        if float((adj - adj.mT).abs().max()) > 1e-4 * float(adj.abs().max()):
            raise InputError(
                f"the network's second output must be symmetric at t={t:.4g}; average it with its transpose"
            )
        if self.prediction == "score":
            return x, adj
        return x / -self.sde.features.sigma(t), adj / -self.sde.adjacency.sigma(t)
