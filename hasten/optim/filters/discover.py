"""Discover: one gradient memory per cluster of the data takes the difference between clusters out of the noise."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal, Real
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, hook
from hasten.optim.wrapper import StepHook

CARD = Card(
    name="discover",
    family="optim",
    paper_id=107,
    title="Variance Reduction in Deep Learning: More Momentum is All You Need",
    authors="Tondji, Kashubin, Cisse",
    year=2021,
    arxiv="2111.11828",
    summary="Keeps a running gradient per cluster of the data and corrects every batch for the clusters it missed.",
    cost="One tensor per parameter and cluster, and one more; two elementwise passes per cluster in the batch.",
    when="The data fall into clusters (classes, sources) whose gradients differ more than those inside a cluster.",
    kinds=KINDS,
    needs=("clusters",),
    use="optimizer = torch.optim.SGD(model.parameters(), momentum=0.9{hyper.lr})\n"
    "discover = hasten.optim.Discover(optimizer, num_clusters=3{hyper})\n"
    "for inputs, labels in loader:\n"
    "    optimizer.zero_grad()\n"
    "    for cluster in labels.unique().tolist():\n"
    "        own = labels == cluster\n"
    "        loss_fn(model(inputs[own]), labels[own]).backward()\n"
    "        discover.observe(cluster, weight=own.float().mean().item())\n"
    "    optimizer.step()",
    search_space={"lr": LogReal(1e-3, 1.0), "gamma": Real(0.05, 0.5)},
)

RENEW = 1000
"""Steps after which the mean of the memories is made anew, so that rounding errors do not pile up."""


@hook(CARD, base=torch.optim.SGD)
class Discover(StepHook):
    """Replaces each gradient by one from which the differences between clusters are taken out; works on any optimizer.

        D = sum_k p_k d_k
        g <- sum over the clusters k in the batch of w_k (g_k - d_k)  +  D
        then  d_k <- (1 - gamma) d_k + gamma g_k  for these clusters, all d_k zero at first

    `g_k` is the mean gradient over the batch's samples of cluster `k`, `w_k` their share in the batch. What a batch
    owes to the clusters that it happens to hold cancels against their memories; what is left is the noise inside
    clusters. With one sample per cluster and `gamma = 1` this is SAGA. Prefer it where classes or sources pull the
    gradient apart; random clusters give nothing.

    Say which cluster a gradient belongs to before the step:

        loss_fn(model(inputs), labels).backward()
        discover.observe(cluster)            # a batch from one cluster
        optimizer.step()

    or, for a mixed batch, run backward on each cluster's samples and observe each with its weight; gradients add up in
    `.grad` as usual meanwhile, and each `observe` takes what has come since the last one. A step without `observe`
    leaves gradient and memories alone. The step begins from what was observed: what else changes gradients (clipping,
    unscaling by `GradScaler`) must come before `observe`, or after it by `compose`.

    Args:
        optimizer: any `torch.optim.Optimizer`; None leaves it to `compose`. The paper uses SGD with momentum, QHM, IGT.
        num_clusters: number of clusters, at least 1.
        probs: share of each cluster in the data, adding up to 1; None for equal ones.
        gamma: weight of the new gradient in a memory, in (0, 1].

    Cost: `num_clusters + 1` tensors per parameter. Source: Tondji, Kashubin, Cisse (2021), arXiv 2111.11828.
    """

    def __init__(
        self,
        optimizer: Optimizer | None = None,
        num_clusters: int = 1,
        probs: Sequence[float] | None = None,
        gamma: float = 0.1,
    ) -> None:
        self.num_clusters = check.integer("num_clusters", num_clusters, 1)
        self.probs = _shares(probs, num_clusters)
        self.gamma = check.real("gamma", gamma, 0.0, 1.0, open_low=True)
        self._seen: dict[int, float] = {}
        self._parts: dict[Tensor, dict[int, Tensor]] = {}
        self._sums: dict[Tensor, Tensor] = {}
        super().__init__(optimizer)

    @torch.no_grad()
    def observe(self, cluster: int, weight: float = 1.0) -> None:
        """Say that what was added to the gradients since the last step or `observe` comes from this cluster.

        Args:
            cluster: from 0 to `num_clusters - 1`; each once in a step.
            weight: share of its samples in the batch, in (0, 1]; the shares of a step must add up to 1.
        """
        cluster = check.integer("cluster", cluster, 0, self.num_clusters - 1)
        check.real("weight", weight, 0.0, 1.0, open_low=True)
        if cluster in self._seen:
            raise InputError(f"cluster {cluster} was observed already in this step; give all its samples at once")
        self._seen[cluster] = weight
        for param in self._params():
            if param.grad is None:
                continue
            so_far = self._sums.get(param)
            part = param.grad.clone() if so_far is None else param.grad - so_far
            self._parts.setdefault(param, {})[cluster] = part
            self._sums[param] = part if so_far is None else param.grad.clone()

    def on_gradients(self, params: list[Tensor]) -> None:
        seen, parts = self._seen, self._parts
        self._seen, self._parts, self._sums = {}, {}, {}
        if not seen:
            return
        if abs(sum(seen.values()) - 1) > 1e-4:
            raise InputError(f"the weights of the clusters in a step must add up to 1, got {seen}")
        for param in params:
            grad: Tensor = param.grad  # type: ignore[assignment]
            if param not in self.state:
                memories = grad.new_zeros((self.num_clusters, *grad.shape))
                self.state[param] = {"memories": memories, "mean": torch.zeros_like(grad)}
            memories, mean = self.state[param]["memories"], self.state[param]["mean"]
            grad.copy_(mean)
            for cluster, weight in seen.items():
                own = parts.get(param, {}).get(cluster)
                change = -memories[cluster] if own is None else own - memories[cluster]
                grad.add_(change, alpha=weight)
                memories[cluster].add_(change, alpha=self.gamma)
                mean.add_(change, alpha=self.gamma * self.probs[cluster])
            if self.steps % RENEW == 0:
                shares = torch.tensor(self.probs, dtype=mean.dtype, device=mean.device)
                mean.copy_(torch.tensordot(shares, memories, dims=1))


def _shares(probs: Sequence[float] | None, count: int) -> list[float]:
    if probs is None:
        return [1 / count] * count
    shares = [float(check.nonnegative(f"probs[{place}]", share)) for place, share in enumerate(probs)]
    if len(shares) != count or abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"probs must be {count} shares that add up to 1, got {len(shares)} with sum {sum(shares):g}")
    return shares
