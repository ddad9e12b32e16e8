"""Handwritten digits that are spread over clients."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.federate import federation
from hasten.core.problem import Problem
from hasten.problems.digits import digits, mlp
from hasten.problems.partition import dirichlet, iid


@ready("digits-federated", kind="federate")
def digits_federated(
    clients: int = 10, width: int = 128, batch: int = 16, partition: str = "dirichlet", alpha: float = 0.5
) -> Problem:
    """Handwritten digits (scikit-learn) over 10 unlike clients, MLP 64-128-10: bytes to a cross entropy of 0.3.

    Args:
        clients: number of clients.
        width: units of the hidden layer.
        batch: images per client and local step.
        partition: `dirichlet` (unlike clients) or `iid`.
        alpha: concentration of the Dirichlet split; the smaller, the more unlike.
    """
    check.one_of("partition", partition, ("dirichlet", "iid"))
    check.integer("width", width, 1)
    check.positive("alpha", alpha)
    images, labels = digits()
    check.integer("clients", clients, 1, len(labels))

    def shards(seed: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
        generator = torch.Generator().manual_seed(seed)
        if partition == "iid":
            parts = iid(len(labels), clients, generator)
        else:
            parts = dirichlet(labels, clients, alpha, generator)
        return [(images[part], labels[part]) for part in parts]

    return federation(
        "digits-federated",
        lambda: mlp(64, width, 10),
        shards,
        F.cross_entropy,
        batch_size=batch,
        measures="cross entropy on all images",
        target=0.3,
        budget=400,
        every=5,
        summary=f"MLP 64-{width}-10 on the 1,797 digits of scikit-learn, {partition} split over {clients} clients",
        contenders=("distributed.dp-sgd", "distributed.fedavg", "distributed.terngrad", "distributed.econtrol"),
    )
