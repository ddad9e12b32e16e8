"""Federated problems: closed forms, splits, and seeds that mean something."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import hasten
from hasten.core.errors import InputError
from hasten.problems.partition import by_order, dirichlet, iid


def quadratic(seed: int = 0, **params: Any) -> Any:
    return hasten.problem("hetero-quadratic", **params).build(seed)


@pytest.mark.parametrize("params", [{}, {"shared": True, "cond": 200.0}, {"L_spread": 100.0}])
def test_closed_forms_of_the_quadratic(params: dict[str, Any]) -> None:
    problem = quadratic(n=6, dim=9, **params)
    mean = problem.gradients(problem.solution).mean(0)
    assert float(mean.norm()) < 1e-10 * float(problem.b.norm())
    assert problem.metric(problem.solution) == pytest.approx(0.0, abs=1e-12)
    assert problem.metric(problem.x0) == pytest.approx(1.0)
    each = problem.gradients(problem.solution).square().sum(1).mean().sqrt()
    assert problem.heterogeneity == pytest.approx(float(each))
    spectra = torch.linalg.eigvalsh(problem.A)
    cond = params.get("cond", 10.0)
    assert torch.allclose(spectra[1], torch.logspace(-torch.log10(torch.tensor(cond)).item(), 0, 9).double(), rtol=1e-4)
    assert torch.allclose(spectra[0] / spectra[1], torch.full((9,), params.get("L_spread", 1.0)).double(), rtol=1e-6)
    assert (
        problem.L / problem.mu == pytest.approx(cond, rel=1e-3)
        if params.get("shared")
        else problem.L / problem.mu < cond
    )


def test_noise_has_the_stated_size_and_no_bias() -> None:
    problem = quadratic(n=2, dim=400, noise=0.5)
    exact = -problem.b
    noise = torch.stack([problem.gradients(problem.x0, key=torch.tensor(k)) for k in range(30)]) - exact
    assert stats.kstest(noise.flatten().numpy() / 0.5, "norm").pvalue > 1e-3


def test_seeds_of_federated_problems() -> None:
    for name in ("hetero-quadratic", "digits-federated"):
        task = hasten.problem(name)
        first, same, other = (task.build(seed) for seed in (0, 0, 1))
        keys = torch.arange(first.n)  # type: ignore[attr-defined]
        found = [instance.gradients(instance.x0, key=keys[0]) for instance in (first, same, other)]  # type: ignore[attr-defined]
        assert torch.equal(found[0], found[1])
        assert not torch.equal(found[0], found[2])


@given(st.integers(1, 20), st.integers(0, 200), st.integers(0, 5))
def test_iid_split_is_a_partition(n: int, extra: int, seed: int) -> None:
    parts = iid(n + extra, n, torch.Generator().manual_seed(seed))
    assert torch.cat(parts).sort().values.tolist() == list(range(n + extra))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


@given(st.integers(1, 12), st.floats(0.05, 100.0), st.integers(0, 5))
def test_dirichlet_split_is_a_partition(n: int, alpha: float, seed: int) -> None:
    labels = torch.arange(10).repeat(60)
    parts = dirichlet(labels, n, alpha, torch.Generator().manual_seed(seed))
    assert torch.cat(parts).sort().values.tolist() == list(range(600))
    assert min(map(len, parts)) >= 1


def test_dirichlet_proportions() -> None:
    labels = torch.zeros(2000, dtype=torch.int64)
    shares = []
    for seed in range(400):
        parts = dirichlet(labels, 3, 2.0, torch.Generator().manual_seed(seed))
        shares.append(len(parts[0]) / 2000)
    assert stats.kstest(shares, stats.beta(2.0, 4.0).cdf).pvalue > 1e-3


def test_pieces_by_order() -> None:
    parts = by_order(torch.tensor([4, 2, 0, 1, 3]), 2)
    assert [part.tolist() for part in parts] == [[4, 2], [0, 1]]


@pytest.mark.skipif(not os.environ.get("HASTEN_DATA"), reason="set HASTEN_DATA to the folder with the real data sets")
def test_logistic_regression_over_clients() -> None:
    problem: Any = hasten.problem("a9a-federated:clients=5").build(0)
    x = torch.linspace(-1, 1, 123, dtype=torch.float64)
    batches = problem.draw(torch.arange(5), 1, torch.arange(5))
    loss = lambda point, rows: torch.nn.functional.softplus(-(rows @ point)).mean() + 5e-4 * point.square().sum()  # noqa: E731
    found = problem.gradients(x)
    for client in range(5):
        assert torch.allclose(found[client], torch.func.grad(loss)(x, batches[client, 0]), atol=1e-12)
    start = problem.gradients(problem.x0).mean(0).norm()
    assert problem.metric(x) == pytest.approx(float(found.mean(0).norm() / start), rel=1e-9)
    assert hasten.distributed.smoothness(problem)[0] == pytest.approx(problem.L, rel=1e-3)
    norms = batches[:, 0].square().sum(-1)
    assert bool((norms[1:].min(1).values >= norms[:-1].max(1).values).all())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: hasten.problem("hetero-quadratic:n=0"), "n must be"),
        (lambda: hasten.problem("hetero-quadratic:cond=0.5"), "cond must be"),
        (lambda: hasten.problem("hetero-quadratic:noise=-1"), "noise must be"),
        (lambda: hasten.problem("digits-federated:partition=random"), "partition must be one of"),
        (lambda: hasten.problem("digits-federated:clients=1798"), "clients must be"),
        (lambda: hasten.problem("a9a-federated:split=x"), "split must be one of"),
        (lambda: dirichlet(torch.zeros(4), 5, 1.0, torch.Generator()), "from 1 to 4"),
        (lambda: dirichlet(torch.zeros(40), 30, 0.01, torch.Generator()), "raise alpha"),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
