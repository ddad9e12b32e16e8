"""The counterexample to Adam: its slopes, its projection, and its samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from hasten.core.catalogue import problem
from hasten.core.errors import InputError


def build(seed: int = 0, **params: Any) -> Any:
    return problem("amsgrad-counterexample", **params).build(seed)


def slopes(instance: Any, count: int) -> list[float]:
    return [float(instance.gradient(instance.x0)) for _ in range(count)]


def test_slopes_are_periodic() -> None:
    assert slopes(build(C=4.0), 7) == [4.0, -1.0, -1.0, 4.0, -1.0, -1.0, 4.0]


def test_the_same_sample_may_be_asked_again() -> None:
    instance = build()
    x = instance.x0 + 0.5
    assert float(instance.gradient(x)) == 3.0
    assert float(instance.gradient(x, fresh=False)) == 3.0
    assert float(instance.evaluate(x, fresh=False)) == 1.5
    assert float(instance.evaluate(x)) == -0.5
    assert instance.calls == {"gradient": 4}


def test_stochastic_slopes_have_their_mean() -> None:
    drawn = torch.tensor(slopes(build(stochastic=True), 4000))
    assert set(drawn.tolist()) == {1010.0, -10.0}
    assert (drawn > 0).double().mean() == pytest.approx(0.01, abs=0.005)
    assert slopes(build(0, stochastic=True), 500) != slopes(build(1, stochastic=True), 500)


def test_metric_is_the_distance_of_the_projection() -> None:
    instance = build()
    assert instance.metric(torch.tensor([-1.0])) == 0.0
    assert instance.metric(torch.tensor([7.0])) == 2.0
    assert instance.prox(torch.tensor([-3.0, 0.5]), 1.0).tolist() == [-1.0, 0.5]
    assert "prox" in instance.offers()
    assert "hessian" not in instance.offers()


def test_large_slope_must_outweigh_the_others() -> None:
    with pytest.raises(InputError, match="C must be"):
        build(C=2.0)
