"""Keyed random numbers: pure, reproducible, uniform and normal."""

from __future__ import annotations

import pytest
import torch
from scipy import stats
from torch.func import vmap

from hasten.numerics import keys

MASK = (1 << 64) - 1


def splitmix64(state: int) -> int:
    """Reference in unbounded integers, from the published algorithm."""
    z = state & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def test_first_numbers_of_splitmix64() -> None:
    # Seed 1234567: first outputs as listed at rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64.
    golden = [6457827717110365317, 3203168211198807973, 9817491932198370423, 4593380528125082431, 16408922859458223821]
    found = keys.bits(torch.tensor(1234567), 5)
    assert [value & MASK for value in found.tolist()] == golden


@pytest.mark.parametrize("seed", [0, 1, -1, (1 << 64) - 1, 1 << 63])
def test_arithmetic_wraps_as_in_unbounded_integers(seed: int) -> None:
    gamma = 0x9E3779B97F4A7C15
    root = splitmix64((seed & MASK) ^ 0x2545F4914F6CDD1D)
    assert keys.key(seed).item() & MASK == root
    found = keys.bits(keys.key(seed), 3).tolist()
    assert [value & MASK for value in found] == [splitmix64(root + step * gamma) for step in (1, 2, 3)]


def test_same_numbers_under_vmap_and_stacked() -> None:
    many = keys.fold(keys.key(3), torch.arange(5))
    alone = torch.stack([keys.uniform(keys.fold(keys.key(3), i), 7) for i in range(5)])
    assert torch.equal(keys.uniform(many, 7), alone)
    assert torch.equal(vmap(lambda key: keys.uniform(key, 7))(many), alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_distributions(dtype: torch.dtype) -> None:
    uniform = keys.uniform(keys.key(0), 100_000, dtype)
    assert uniform.dtype == dtype
    assert 0 < float(uniform.min()) < float(uniform.max()) < 1
    assert stats.kstest(uniform.double().numpy(), "uniform").pvalue > 1e-3
    normal = keys.normal(keys.key(1), 100_000, dtype)
    assert bool(normal.isfinite().all())
    assert stats.kstest(normal.double().numpy(), "norm").pvalue > 1e-3


def test_children_differ_from_each_other_and_from_the_parent() -> None:
    parent = keys.key(0)
    rows = torch.cat([keys.fold(parent, torch.arange(1000)), keys.bits(parent, 1000), parent.view(1)])
    assert len(rows.unique()) == 2001


def test_permutation() -> None:
    order = keys.permutation(keys.fold(keys.key(0), torch.arange(2000)), 4)
    assert torch.equal(order.sort(-1).values, torch.arange(4).expand(2000, 4))
    assert stats.chisquare(torch.bincount(order[:, 0], minlength=4).numpy()).pvalue > 1e-3
