"""The predicted gradient against scikit-learn, and rounds of parallel iterations."""

from __future__ import annotations

import copy
import math
import warnings
from typing import Any

import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, Matern
from torch import Tensor, nn

import hasten
from hasten.core.errors import InputError
from hasten.optim.averaging.optex import CARD, KernelGradient, OptEx

CURVATURE = torch.logspace(0, 1, 6, dtype=torch.float64)


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(("kernel", "theirs"), [("matern52", Matern(1.7, "fixed", 2.5)), ("rbf", RBF(1.7, "fixed"))])
def test_prediction_is_that_of_scikit_learn(kernel: str, theirs: Any):
    points, gradients, new = random(12, 5), random(12, 5, seed=1), random(4, 5, seed=2)
    ours = KernelGradient(kernel=kernel, lengthscale=1.7, noise=1e-4)
    for point, gradient in zip(points, gradients):
        ours.add(point, gradient)
    reference = GaussianProcessRegressor(theirs, alpha=1e-4, optimizer=None)  # type: ignore[arg-type]
    reference.fit(points.numpy(), gradients.numpy())
    found = torch.stack([ours.predict(point) for point in new])
    torch.testing.assert_close(found, torch.tensor(reference.predict(new.numpy())), rtol=0, atol=1e-6)


def test_length_scales_of_the_history():
    points = torch.tensor([[0.0], [1.0], [4.0]], dtype=torch.float64)
    new = torch.tensor([0.5], dtype=torch.float64)
    for name, number in (("median", 3.0), ("wide", 12.0)):
        by_name, by_number = KernelGradient(lengthscale=name), KernelGradient(lengthscale=number)
        for point in points:
            by_name.add(point, point)
            by_number.add(point, point)
        assert torch.equal(by_name.predict(new), by_number.predict(new))


def test_duplicated_points_and_bad_pairs():
    model = KernelGradient(history=4, noise=1e-6)
    point = random(3)
    for _ in range(6):
        model.add(point, 2 * point)
    model.add(point, point * math.nan)
    model.add(point * math.inf, point)
    assert len(model.pairs) == 4
    torch.testing.assert_close(model.predict(point), 2 * point, rtol=1e-5, atol=0)


def test_distances_by_some_coordinates():
    model = KernelGradient(subset_dims=2, lengthscale=1.0, seed=3)
    drawn = torch.randperm(5, generator=torch.Generator().manual_seed(3))[:2]
    model.add(torch.zeros(5), torch.ones(5))
    other = torch.full((5,), 9.0)
    other[drawn] = 0.0
    torch.testing.assert_close(model.predict(other), torch.ones(5), rtol=1e-5, atol=0)


def quadratic(points: Tensor) -> tuple[Tensor, Tensor]:
    return (CURVATURE * points**2).sum(1) / 2, CURVATURE * points


def with_closure(optimizer: OptEx, x: nn.Parameter) -> Any:
    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (CURVATURE * x**2).sum() / 2
        loss.backward()
        return loss

    return optimizer.step(closure)


def test_a_round_is_the_algorithm():
    """Three rounds of momentum against the algorithm written down plainly."""
    x = nn.Parameter(random(6))
    optimizer = OptEx([x], torch.optim.SGD, parallel=3, lengthscale="wide", lr=0.02, momentum=0.9)
    z, velocity, seen = random(6), torch.zeros(6, dtype=torch.float64), []
    for _ in range(3):
        with_closure(optimizer, x)
        points = [z]
        while len(points) < 3 and seen:
            predictor = KernelGradient(lengthscale="wide")
            for point, gradient in seen:
                predictor.add(point, gradient)
            velocity = 0.9 * velocity + predictor.predict(z)
            z = z - 0.02 * velocity
            points.append(z)
        velocity = 0.9 * velocity + CURVATURE * z
        z = z - 0.02 * velocity
        seen += [(point, CURVATURE * point) for point in points]
    torch.testing.assert_close(x.detach(), z, rtol=0, atol=1e-12)
    assert len(optimizer.predictor.pairs) == 1 + 3 + 3


@pytest.mark.parametrize("select", ["last", "min_loss", "min_grad"])
def test_closure_and_oracle_are_the_same(select: str):
    one, other = nn.Parameter(random(6)), nn.Parameter(random(6))
    by_closure = OptEx([one], torch.optim.Adam, select=select, lr=0.05)
    by_oracle = OptEx([other], torch.optim.Adam, select=select, lr=0.05)
    for _ in range(5):
        loss = with_closure(by_closure, one)
        by_oracle.round(quadratic)
    assert torch.equal(one, other)
    assert loss.item() < float(quadratic(random(6)[None])[0])


def test_one_per_round_is_the_base():
    one, other = nn.Parameter(random(6)), nn.Parameter(random(6))
    optimizer, base = OptEx([one], torch.optim.Adam, parallel=1, lr=0.1), torch.optim.Adam([other], lr=0.1)
    for _ in range(5):
        with_closure(optimizer, one)
        other.grad = CURVATURE * other.detach()
        base.step()
    torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_goes_on_from_the_best_point_with_its_state():
    """Far too large a step: the points run away, so the best one is the first, with the momentum of then."""
    x = nn.Parameter(random(6))
    optimizer = OptEx([x], torch.optim.SGD, select="min_loss", lengthscale="wide", lr=0.5, momentum=0.9)
    optimizer.round(quadratic)
    start, velocity = x.detach().clone(), optimizer.state[x]["momentum_buffer"].clone()
    seen = []

    def oracle(points: Tensor) -> tuple[Tensor, Tensor]:
        seen.append(points)
        return quadratic(points)

    optimizer.round(oracle)
    losses = quadratic(seen[0])[0]
    assert len(losses) == 4
    assert int(losses.argmin()) == 0, "the example must run away"
    expected = 0.9 * velocity + CURVATURE * start
    torch.testing.assert_close(optimizer.state[x]["momentum_buffer"], expected)
    torch.testing.assert_close(x.detach(), start - 0.5 * expected)


def test_points_without_finite_gradients_are_left():
    x = nn.Parameter(random(6))
    optimizer = OptEx([x], lr=0.02)
    optimizer.round(quadratic)
    start = x.detach().clone()

    def oracle(points: Tensor) -> Tensor:
        gradients = quadratic(points)[1]
        gradients[1:] = math.nan
        return gradients

    optimizer.round(oracle)
    torch.testing.assert_close(x.detach(), start - 0.02 * CURVATURE * start)
    assert len(optimizer.predictor.pairs) == 2


def test_fewer_rounds_on_a_smooth_function():
    rounds = []
    for parallel in (1, 4):
        x = nn.Parameter(random(6))
        optimizer, count = OptEx([x], parallel=parallel, lengthscale="wide", lr=0.01), 0
        while float(quadratic(x.detach()[None])[0]) > 0.01:
            optimizer.round(quadratic)
            count += 1
        rounds.append(count)
    assert rounds[1] <= 0.35 * rounds[0]


def test_resumes_with_its_history():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 1), nn.Linear(1, 1))
    data = torch.randn(16, 4)

    def make(network: nn.Module) -> tuple[OptEx, Any]:
        optimizer = OptEx(network.parameters(), torch.optim.Adam, history=6, lr=0.01)

        def closure() -> Tensor:
            optimizer.zero_grad()
            loss = (network[2](network[1](network[0](data))) - 1).square().mean()  # type: ignore[index]
            loss.backward()
            return loss

        return optimizer, closure

    optimizer, closure = make(model)
    for _ in range(3):
        optimizer.step(closure)
    twin = copy.deepcopy(model)
    again, other = make(twin)
    again.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for _ in range(3):
        optimizer.step(closure)
        again.step(other)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))
    assert model[3].weight.grad is None
    assert len(again.predictor.pairs) == 6
    again.add_param_group({"params": [nn.Parameter(torch.zeros(2))]})
    assert not again.predictor.pairs


def test_bad_arguments_are_named():
    x = [nn.Parameter(torch.zeros(2))]
    for name, value in {
        "parallel": 0,
        "history": 0,
        "kernel": "cubic",
        "lengthscale": -1.0,
        "noise": 0.0,
        "subset_dims": 0,
        "select": "first",
    }.items():
        with pytest.raises(InputError, match=name):
            OptEx(x, **{name: value})
    with pytest.raises(InputError, match="lengthscale"):
        KernelGradient(lengthscale="mean")
    with pytest.raises(InputError, match="nothing to predict from"):
        KernelGradient().predict(torch.zeros(2))
    with pytest.raises(InputError, match="needs losses"):
        OptEx(x, select="min_loss").round(lambda points: points)
    with pytest.raises(InputError, match="takes gradients"):
        OptEx(x, lambda params: OptEx(params))


def test_races():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trace = hasten.run(CARD.make(lr=0.1, parallel=4), hasten.problem("digits-mlp:width=8"), budget=10)
    assert trace.status == "budget", trace.message
    assert trace.final < trace.metric[0]
    assert trace.calls["gradient"][-1] == 1 + 9 * 4
