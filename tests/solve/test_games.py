"""The extragradient family against closed-form trajectories, and against each other."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
import torch

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.kinds.saddle import Saddle, duality_gap, saddle
from hasten.core.run import run
from hasten.solve import (
    AcceleratedOptimisticGradient,
    ExtraAnchoredGradient,
    Extragradient,
    OptimisticGradient,
    PastExtragradient,
)

COUPLING = np.random.default_rng(1).standard_normal((3, 3))
MATRIX = np.block([[0.1 * np.eye(3), COUPLING], [-COUPLING.T, 0.2 * np.eye(3)]])
START = np.arange(1.0, 7.0)


def game(projection=None) -> Saddle:
    operator = torch.from_numpy(MATRIX)
    return Saddle(lambda z: operator @ z, torch.from_numpy(START), projection=projection, lipschitz=4.0)


def path(solver, steps: int = 25, projection=None, read=lambda state: state.x) -> np.ndarray:
    instance = game(projection)
    state = solver.init(instance, torch.Generator())
    points = []
    for _ in range(steps):
        state = solver.step(instance, state)
        points.append(read(state).numpy())
    return np.array(points)


def test_extragradient_is_the_matrix_power() -> None:
    step = np.eye(6) - 0.1 * MATRIX @ (np.eye(6) - 0.1 * MATRIX)
    expected = [np.linalg.matrix_power(step, k) @ START for k in range(1, 26)]
    np.testing.assert_allclose(path(Extragradient(0.1)), expected, rtol=1e-10)


def test_past_extragradient_follows_its_recursion() -> None:
    z, half, expected = START, START, []
    for _ in range(25):
        half = z - 0.1 * MATRIX @ half
        z = z - 0.1 * MATRIX @ half
        expected.append(z)
    np.testing.assert_allclose(path(PastExtragradient(0.1)), expected, rtol=1e-10)


@pytest.mark.parametrize(
    ("solver", "past"), [(ExtraAnchoredGradient(0.1), False), (AcceleratedOptimisticGradient(0.1), True)]
)
def test_anchored_methods_follow_their_recursion(solver, past: bool) -> None:
    z, half, expected = START, START, []
    for t in range(1, 26):
        base = z + (START - z) / (t + 1)
        half = base - 0.1 * MATRIX @ (half if past else z)
        z = base - 0.1 * MATRIX @ half
        expected.append(z)
    np.testing.assert_allclose(path(solver), expected, rtol=1e-10)


def test_without_constraints_the_corrected_form_has_the_same_base_points() -> None:
    found = path(OptimisticGradient(0.1), read=lambda state: state.z)
    np.testing.assert_allclose(found, path(PastExtragradient(0.1)), rtol=0, atol=1e-13)


def test_corrected_form_is_forward_reflected_backward() -> None:
    project = lambda z: z.clamp(min=-1, max=3)  # noqa: E731
    found = path(OptimisticGradient(0.1), projection=project)
    last, half = START, np.clip(START - 0.1 * MATRIX @ START, -1, 3)
    expected = [half]
    for _ in range(24):
        last, half = half, np.clip(half - 0.2 * MATRIX @ half + 0.1 * MATRIX @ last, -1, 3)
        expected.append(half)
    np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-12)


@dataclass(frozen=True)
class Unanchored(AcceleratedOptimisticGradient):
    anchored: ClassVar[bool] = False


def test_dropping_the_anchor_gives_past_extragradient_bit_for_bit() -> None:
    project = lambda z: z.clamp(min=-1, max=3)  # noqa: E731
    for projection in (None, project):
        assert np.array_equal(
            path(Unanchored(0.1), projection=projection), path(PastExtragradient(0.1), projection=projection)
        )


@pytest.mark.parametrize(
    ("solver", "operators", "projections"),
    [
        (Extragradient(), 20, 20),
        (PastExtragradient(), 11, 20),
        (OptimisticGradient(), 11, 10),
        (ExtraAnchoredGradient(), 20, 20),
        (AcceleratedOptimisticGradient(), 11, 20),
    ],
    ids=lambda value: type(value).__name__,
)
def test_calls_per_step(solver, operators: int, projections: int) -> None:
    trace = run(solver, problem("matrix-game:dim=4"), budget=10, target=-math.inf)
    assert {name: column[-1] for name, column in trace.calls.items()} == {
        "operator": operators,
        "projection": projections,
    }


def test_answers_stay_on_the_simplices() -> None:
    for solver in (OptimisticGradient(), AcceleratedOptimisticGradient()):
        instance = problem("matrix-game:dim=4").build(2)
        state = solver.init(instance, torch.Generator())
        for _ in range(30):
            state = solver.step(instance, state)
            x, y = instance.split(state.x) if isinstance(instance, Saddle) else ()
            assert float(state.x.min()) >= 0
            assert float(x.sum()) == pytest.approx(1)
            assert float(y.sum()) == pytest.approx(1)


def test_duality_gap_of_a_known_game() -> None:
    gap = duality_gap(torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64))
    assert gap(torch.full((4,), 0.5, dtype=torch.float64)) == pytest.approx(0.0)
    assert gap(torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)) == pytest.approx(1.0)


def test_anchoring_is_faster_on_the_bilinear_game() -> None:
    finals = [
        run(solver, problem("bilinear-game"), budget=1000, target=-math.inf, every=1000).final
        for solver in (AcceleratedOptimisticGradient(), PastExtragradient())
    ]
    assert finals[0] < 0.3 * finals[1]


def test_online_step_shrinks_with_the_operators_changes() -> None:
    instance = game()
    solver = AcceleratedOptimisticGradient(mode="online")
    state = solver.init(instance, torch.Generator())
    assert solver.rate(state) == 1.0
    state = solver.step(instance, solver.step(instance, state))
    assert 0 < solver.rate(state) < 0.1


def test_bad_input() -> None:
    with pytest.raises(InputError, match="mode"):
        AcceleratedOptimisticGradient(mode="offline")
    with pytest.raises(InputError, match="lr"):
        Extragradient(lr=-0.1)
    with pytest.raises(InputError, match="z0"):
        saddle("pull", lambda z: z, torch.ones(2, 2))
    with pytest.raises(InputError, match="players"):
        Saddle(lambda z: z, torch.ones(3), players=(1, 1))
