"""Logistic regression on the a9a table, split over clients that take full gradients."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import softplus

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.kinds.federate import Federation
from hasten.core.problem import Problem
from hasten.problems.data import load
from hasten.problems.partition import by_order


class FederatedLogistic(Federation):
    """f_i(x) = mean log(1 + exp(-y <a, x>)) + ridge/2 |x|^2 over client i's rows; metric |grad f(x)|/|grad f(0)|.

    Attributes:
        L, L_i: smoothness of the mean and of each client, `[n]`.
    """

    def __init__(self, A: Tensor, y: Tensor, ridge: float) -> None:
        n, rows, d = A.shape
        signed = A * y.unsqueeze(-1)
        self.L_i = torch.linalg.eigvalsh(A.mT @ A)[:, -1] / (4 * rows) + ridge
        self.L = float(torch.linalg.eigvalsh((A.mT @ A).mean(0))[-1]) / (4 * rows) + ridge
        everyone = torch.arange(n)

        def draw(clients: Tensor, steps: int, key: Tensor) -> Tensor:
            chosen = signed if torch.equal(clients, everyone) else signed[clients]
            return chosen.unsqueeze(1).expand(-1, steps, -1, -1)

        def loss(x: Tensor, batch: Tensor) -> Tensor:
            return softplus(-(batch @ x)).mean() + ridge / 2 * x.square().sum()

        def gradient(x: Tensor, batch: Tensor) -> Tensor:
            return -(torch.sigmoid(-(batch @ x)) @ batch) / rows + ridge * x

        table = signed.flatten(0, 1)

        def slope(x: Tensor) -> float:
            return float((-(torch.sigmoid(-(table @ x)) @ table) / len(table) + ridge * x).norm())

        start = slope(torch.zeros(d, dtype=A.dtype))
        x0 = torch.zeros(d, dtype=A.dtype)
        super().__init__(n, x0, draw, lambda x: slope(x) / start, loss=loss, gradient=gradient)


@ready("a9a-federated", kind="federate")
def a9a_federated(clients: int = 20, split: str = "norm", ridge: float = 1e-3) -> Problem:
    """Logistic regression on a9a over 20 clients with full gradients: gradient norm down to 1e-2 of the start's.

    Args:
        clients: number of clients, of equally many rows.
        split: `norm` (rows sorted by their norm), `label` (sorted by label), or `iid`.
        ridge: weight of |x|^2/2.
    """
    check.one_of("split", split, ("norm", "label", "iid"))
    check.integer("clients", clients, 1, 16281)
    check.nonnegative("ridge", ridge)

    def build(seed: int) -> FederatedLogistic:
        arrays = load("a9a")
        x = torch.tensor(arrays["x"], dtype=torch.float64)
        y = torch.tensor(arrays["y"], dtype=torch.float64)
        if split == "iid":
            order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
        else:
            order = (x.norm(dim=1) if split == "norm" else y).argsort(stable=True)
        parts = torch.stack(by_order(order, clients))
        return FederatedLogistic(x[parts], y[parts], ridge)

    return Problem(
        "a9a-federated",
        Federation.kind,
        build,
        measures="gradient norm relative to the start",
        target=1e-2,
        budget=1000,
        every=10,
        cost="bytes",
        summary=f"logistic regression on 16,281 rows of 123 binary features over {clients} clients, split by {split}",
        baseline="distributed.dp-sgd",
        contenders=("distributed.dp-sgd", "distributed.ef14", "distributed.ef21", "distributed.econtrol"),
    )
