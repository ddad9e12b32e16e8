"""Discover against its formulas and against SAGA, with batches from one cluster and from several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import Discover
from hasten.optim.filters import discover as module


def make(shape: tuple[int, ...] = (3,), lr: float = 0.0, **options: Any) -> tuple[nn.Parameter, Any, Discover]:
    x = nn.Parameter(torch.zeros(shape, dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=lr)
    return x, optimizer, Discover(optimizer, **options)


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_one_sample_per_cluster_and_gamma_one_is_saga():
    rows, targets = normal(0, 6, 3), normal(1, 6)
    x, optimizer, ours = make(lr=0.05, num_clusters=6, gamma=1.0)
    point, table = torch.zeros(3, dtype=torch.float64), torch.zeros(6, 3, dtype=torch.float64)
    order = torch.randint(6, (200,), generator=torch.Generator().manual_seed(2)).tolist()
    for i in order:
        x.grad = rows[i] * (rows[i] @ x.detach() - targets[i])
        ours.observe(i)
        optimizer.step()
        fresh = rows[i] * (rows[i] @ point - targets[i])
        direction = fresh - table[i] + table.mean(0)
        table[i] = fresh
        point = point - 0.05 * direction
        torch.testing.assert_close(x.grad, direction, rtol=0, atol=1e-12)
    torch.testing.assert_close(x.detach(), point, rtol=0, atol=1e-12)


def test_mixed_batches_are_the_formula():
    probs = [0.5, 0.3, 0.2]
    x, optimizer, ours = make(num_clusters=3, probs=probs, gamma=0.25)
    memories = [torch.zeros(3, dtype=torch.float64) for _ in probs]
    for t, shares in enumerate([{0: 0.5, 2: 0.5}, {1: 1.0}, {2: 0.2, 0: 0.7, 1: 0.1}, {0: 1.0}, {1: 0.6, 2: 0.4}] * 3):
        grads = normal(t, 3, 3)
        x.grad = None
        for cluster, weight in shares.items():
            x.grad = grads[cluster].clone() if x.grad is None else x.grad + grads[cluster]
            ours.observe(cluster, weight)
        optimizer.step()
        expected = sum(p * d for p, d in zip(probs, memories)) + sum(
            weight * (grads[cluster] - memories[cluster]) for cluster, weight in shares.items()
        )
        for cluster in shares:
            memories[cluster] = 0.75 * memories[cluster] + 0.25 * grads[cluster]
        torch.testing.assert_close(x.grad, expected, rtol=1e-11, atol=1e-13)


def test_mean_of_the_memories_does_not_drift(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "RENEW", 5)
    x, optimizer, ours = make(num_clusters=2)
    for t in range(10):
        x.grad = normal(t, 3) * (1e12 if t < 4 else 1e-3)
        ours.observe(t % 2)
        optimizer.step()
    held = ours.state[x]
    torch.testing.assert_close(held["mean"], held["memories"].mean(0), rtol=1e-14, atol=0)


def test_a_cluster_without_gradient_for_a_tensor_counts_as_zero():
    first, second = nn.Parameter(torch.zeros(1)), nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([first, second], lr=0.0)
    ours = Discover(optimizer, 2, gamma=0.5)
    for with_second in (True, False):
        first.grad, second.grad = torch.ones(1), torch.ones(1) if with_second else None
        ours.observe(0, 0.5)
        first.grad = first.grad + 1
        second.grad = torch.zeros(1) if second.grad is None else second.grad
        ours.observe(1, 0.5)
        optimizer.step()
    assert ours.state[second]["memories"].flatten().tolist() == [0.25, 0.0]
    assert ours.state[first]["memories"].flatten().tolist() == [0.75, 0.75]


def test_steps_without_clusters_are_left_alone():
    x, optimizer, ours = make(num_clusters=2)
    x.grad = torch.ones(3, dtype=torch.float64)
    optimizer.step()
    assert torch.equal(x.grad, torch.ones(3, dtype=torch.float64))
    assert not ours.state


def test_constant_clusters_give_the_full_gradient():
    """Once every memory is that of its cluster, any batch gives the mean over all clusters."""
    centres = normal(0, 4, 3)
    x, optimizer, ours = make(num_clusters=4, gamma=1.0)
    for t in range(8):
        x.grad = centres[t % 4].clone()
        ours.observe(t % 4)
        optimizer.step()
        if t >= 4:
            torch.testing.assert_close(x.grad, centres.mean(0))


def test_misuse_is_refused():
    x, optimizer, ours = make(num_clusters=3)
    x.grad = torch.ones(3, dtype=torch.float64)
    with pytest.raises(InputError, match="cluster must be an integer from 0 to 2"):
        ours.observe(3)
    with pytest.raises(InputError, match="weight"):
        ours.observe(0, 0.0)
    ours.observe(0, 0.5)
    with pytest.raises(InputError, match="already"):
        ours.observe(0, 0.5)
    with pytest.raises(InputError, match="add up to 1"):
        optimizer.step()
    ours.observe(0)
    optimizer.step()


@pytest.mark.parametrize(
    "options",
    [
        {"num_clusters": 0},
        {"probs": [0.5, 0.6], "num_clusters": 2},
        {"probs": [1.0], "num_clusters": 2},
        {"probs": [-0.5, 1.5], "num_clusters": 2},
        {"gamma": 0.0},
        {"gamma": 1.1},
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(options))):
        Discover(None, **options)
