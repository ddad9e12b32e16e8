"""Gradient methods against closed forms and their guarantees."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.kinds.minimise import minimisation
from hasten.core.run import run
from hasten.solve import FISTA, GradientDescent, Nesterov, ProximalGradient

SPECTRUM = torch.logspace(-3, 0, 20, dtype=torch.float64)


def quadratic(**options):
    x0 = torch.ones(20, dtype=torch.float64)
    return minimisation("bowl", lambda x: (SPECTRUM * x * x).sum() / 2, x0, minimum=0.0, **options)


def test_gradient_descent_is_the_matrix_power() -> None:
    trace = run(GradientDescent(lr=1.5), quadratic(), budget=40)
    x = (1 - 1.5 * SPECTRUM) ** 40
    assert trace.final == pytest.approx(float((SPECTRUM * x * x).sum() / 2), rel=1e-10)


def test_nesterov_meets_its_bound_and_beats_gradient_descent() -> None:
    fast, plain = (
        run(method, quadratic(), budget=200) for method in (Nesterov(1.0, restart=False), GradientDescent(1.0))
    )
    for k, value in zip(fast.steps[1:], fast.metric[1:]):
        assert value <= 2 * 20 / (k + 1) ** 2
    assert fast.final < 0.5 * plain.final


def test_restart_makes_it_linear() -> None:
    kept, restarted = (run(Nesterov(1.0, restart=r), quadratic(), budget=600).final for r in (False, True))
    assert restarted < 1e-3 * kept


@pytest.mark.parametrize("method", [GradientDescent(), Nesterov(), ProximalGradient(), FISTA(restart=True)], ids=str)
def test_backtracking_finds_the_step(method) -> None:
    scaled = minimisation(
        "steep", lambda x: 500 * (SPECTRUM * x * x).sum(), torch.ones(20, dtype=torch.float64), minimum=0.0
    )
    trace = run(method, scaled, budget=300)
    assert trace.final < 0.01 * trace.metric[0]
    if not method.accelerated:
        assert np.all(np.diff(trace.metric) <= 1e-12)


def test_lasso_reaches_the_exact_minimum() -> None:
    for method in (ProximalGradient(), FISTA(restart=True)):
        trace = run(method, problem("diabetes-lasso"), budget=1000, target=1e-10)
        assert trace.status == "reached"


def test_bad_step() -> None:
    with pytest.raises(InputError, match="lr"):
        GradientDescent(lr=0.0)
