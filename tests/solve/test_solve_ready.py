"""The ready games, transport and registration problems, and problems of one's own of these kinds."""

from __future__ import annotations

import math
import os

import pytest
import torch

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.kinds.register import Clouds, Registration, registration
from hasten.core.kinds.saddle import payoff_operator, saddle
from hasten.core.kinds.transport import transport
from hasten.core.run import run
from hasten.solve import FastICP, solve

needs_data = pytest.mark.skipif(
    not os.environ.get("HASTEN_DATA"), reason="set HASTEN_DATA to the folder with the real data sets"
)
NAMES = [
    "bilinear-game",
    "matrix-game",
    "random-transport",
    "bumpy-registration:source=500,target=500",
    pytest.param("bunny:points=500", marks=needs_data),
]


@pytest.mark.parametrize("name", NAMES)
def test_seeds_decide_the_instance(name: str) -> None:
    made = problem(name)
    first, again, other = made.build(1), made.build(1), made.build(2)
    assert first.metric(first.x0) == again.metric(again.x0)  # type: ignore[attr-defined]
    if name != "bilinear-game":
        assert vars(first).keys() == vars(other).keys()
        assert first.metric(first.x0) != other.metric(other.x0)  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", NAMES)
def test_the_target_is_ahead_and_the_summary_is_there(name: str) -> None:
    made = problem(name)
    instance = made.build(0)
    assert made.target is not None
    assert made.target < instance.metric(instance.x0)  # type: ignore[attr-defined]
    assert made.summary.endswith((".", "rounds"))
    assert made.baseline is not None


def test_bilinear_game_is_its_formula() -> None:
    instance = problem("bilinear-game:dim=3,smallest=0.01").build(0)
    expected = torch.tensor([0.01, 0.1, 1.0, -0.01, -0.1, -1.0], dtype=torch.float64)
    torch.testing.assert_close(instance.operator(instance.x0), expected)  # type: ignore[attr-defined]
    assert instance.metric(instance.x0) == pytest.approx(math.sqrt(2 * 1.0101))  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    "name", ["bumpy-registration:source=500,target=500,keep=0.5,outliers=0.1", pytest.param("bunny", marks=needs_data)]
)
def test_the_true_motion_has_error_zero_and_lays_one_set_on_the_other(name: str) -> None:
    instance = problem(name).build(0)
    assert isinstance(instance, Registration)
    assert instance.truth is not None
    assert instance.metric(instance.truth) == 0.0
    at_truth, at_start = (float(instance.nearest(motion)[1].median()) for motion in (instance.truth, instance.x0))
    assert at_truth < 0.7 * at_start


@needs_data
def test_bunny_is_registered() -> None:
    trace = run(FastICP(loss="welsch", max_iter=300), problem("bunny"), budget=200, target=0.006)
    assert trace.status == "reached"


def test_a_game_of_ones_own() -> None:
    operator = payoff_operator(lambda x, y: (x - y).square().sum() - 2 * y.square().sum(), (1, 1))
    made = saddle("own", operator, torch.ones(2, dtype=torch.float64), lipschitz=5.0, target=1e-6, budget=500)
    assert solve(made, "extragradient").success


def test_a_noisy_game_draws_from_its_seed() -> None:
    def noisy(z: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return z + torch.randn(2, generator=generator, dtype=z.dtype)

    made = saddle("noisy", lambda z: z, torch.ones(2, dtype=torch.float64), noisy_operator=noisy)
    first, again, other = (made.build(seed) for seed in (0, 0, 1))
    assert torch.equal(first.operator(first.x0), again.operator(again.x0))  # type: ignore[attr-defined]
    assert not torch.equal(first.operator(first.x0), other.operator(other.x0))  # type: ignore[attr-defined]


def test_transport_of_ones_own() -> None:
    mass = torch.full((5,), 0.2, dtype=torch.float64)
    made = transport("own", lambda seed: (mass, mass, torch.eye(5, dtype=torch.float64)), 0.1, target=1e-10)
    result = solve(made, "sinkhorn-newton-sparse", max_iter=50)
    assert result.success


def test_registration_without_a_truth_is_measured_by_nearest_points() -> None:
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    made = registration("own", lambda seed: Clouds(points + 1.0, points), target=1e-9)
    instance = made.build(0)
    assert instance.metric(torch.eye(4, dtype=torch.float64)) > 0.1
    assert solve(made, "icp").success


@pytest.mark.parametrize(
    "name",
    [
        "bilinear-game:dim=0",
        "bilinear-game:smallest=0",
        "matrix-game:payoffs=skewed",
        "random-transport:eta=-1",
        "random-transport:n=1",
        "bumpy-registration:keep=0",
        "bumpy-registration:outliers=2",
        "bunny:points=20000",
        "bunny:angle=4",
    ],
)
def test_parameters_outside_their_range(name: str) -> None:
    with pytest.raises(InputError):
        problem(name)
