"""How data are split over clients."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from hasten.core import check
from hasten.core.errors import InputError


def iid(count: int, n: int, generator: torch.Generator) -> list[Tensor]:
    """A random split of `count` samples over `n` clients, sizes equal up to one; index tensors."""
    check.integer("n (clients)", n, 1, count)
    return list(torch.randperm(count, generator=generator).tensor_split(n))


def dirichlet(labels: Tensor, n: int, alpha: float, generator: torch.Generator, min_size: int = 1) -> list[Tensor]:
    """Each class is split over the clients in proportions drawn from Dir(alpha); small alpha makes clients unlike.

    Redraws until every client holds at least `min_size` samples.

    Raises:
        InputError: there are too few samples, or 100 draws did not give every client `min_size` of them.
    """
    check.positive("alpha", alpha)
    check.integer("n (clients)", n, 1, len(labels) // max(min_size, 1))
    random = np.random.default_rng(int(torch.randint(1 << 62, (), generator=generator)))
    for _ in range(100):
        parts: list[list[Tensor]] = [[] for _ in range(n)]
        for label in labels.unique():
            places = (labels == label).nonzero()[:, 0]
            places = places[torch.randperm(len(places), generator=generator)]
            shares = torch.from_numpy(random.dirichlet([alpha] * n))
            cuts = (shares.cumsum(0) * len(places)).round().long()[:-1]
            for client, piece in enumerate(places.tensor_split(cuts)):
                parts[client].append(piece)
        split = [torch.cat(pieces) for pieces in parts]
        if min(len(part) for part in split) >= min_size:
            return split
    raise InputError(f"no split over {n} clients with alpha={alpha:g} left each {min_size} samples; raise alpha")


def by_order(order: Tensor, n: int) -> list[Tensor]:
    """`n` consecutive pieces of equal size of `order`, sample numbers sorted by some feature; the rest is left out."""
    check.integer("n (clients)", n, 1, len(order))
    size = len(order) // n
    return list(order[: n * size].split(size))
