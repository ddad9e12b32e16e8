"""Rigid registration: single steps against SciPy, robustness, the estimator's front."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation
from sklearn.base import clone

from hasten.core.catalogue import problem
from hasten.core.errors import InputError, MismatchError
from hasten.core.kinds.register import Registration
from hasten.core.run import run
from hasten.solve import ICP, FastICP

RNG = np.random.default_rng(0)
DIRECTIONS = RNG.standard_normal((600, 3))
TARGET = DIRECTIONS / np.linalg.norm(DIRECTIONS, axis=1, keepdims=True) * [1.0, 0.7, 0.4]
ROTATION = Rotation.from_rotvec([0.1, 0.25, -0.15])
SHIFT = np.array([0.3, -0.2, 0.5])
SOURCE = ROTATION.inv().apply(TARGET[:400] - SHIFT)


def cloud(seed: int = 0) -> Registration:
    instance = problem("bumpy-registration:source=500,target=600").build(seed)
    assert isinstance(instance, Registration)
    return instance


def test_one_plain_step_is_scipys_fit_of_the_nearest_points() -> None:
    instance = cloud()
    method = ICP()
    state = method.step(instance, method.init(instance, torch.Generator()))
    source, target = instance.source.numpy(), instance.target.numpy()
    moved = source + target.mean(0) - source.mean(0)
    matched = target[KDTree(target).query(moved)[1]]
    rotation, _ = Rotation.align_vectors(matched - matched.mean(0), source - source.mean(0))
    np.testing.assert_allclose(state.x[:3, :3].numpy(), rotation.as_matrix(), atol=1e-10)
    np.testing.assert_allclose(state.x[:3, 3].numpy(), matched.mean(0) - rotation.apply(source.mean(0)), atol=1e-10)


def test_the_first_accelerated_step_is_plain() -> None:
    instance = cloud()
    plain, fast = (method.step(instance, method.init(instance, torch.Generator())).x for method in (ICP(), FastICP()))
    torch.testing.assert_close(fast, plain, rtol=0, atol=1e-10)


def test_energy_never_rises_and_rejections_cost_a_query() -> None:
    instance = cloud(1)
    method = FastICP()
    state = method.init(instance, torch.Generator())
    energies, steps = [], 0
    while not method.done(state) and steps < 200:
        state, steps = method.step(instance, state), steps + 1
        energies.append(state.energy)
    assert method.done(state)
    assert np.all(np.diff(energies) <= 0)
    assert steps + 1 < instance.calls["query"] <= 2 * steps + 1


@pytest.mark.parametrize("estimator", [ICP(max_iter=300), FastICP(), FastICP(loss="welsch", max_iter=300)], ids=str)
def test_finds_the_motion(estimator) -> None:
    # The source is a random two thirds of the target, so that the true motion has energy zero.
    estimator.fit(SOURCE, TARGET)
    assert estimator.converged_
    expected = np.eye(4)
    expected[:3, :3], expected[:3, 3] = ROTATION.as_matrix(), SHIFT
    np.testing.assert_allclose(estimator.transformation_, expected, atol=1e-3)
    np.testing.assert_allclose(estimator.transform(SOURCE), TARGET[:400], atol=2e-3)


def test_front_of_the_estimator() -> None:
    icp = FastICP(anderson=3)
    assert np.allclose(icp.fit_transform(SOURCE, TARGET), icp.transform(SOURCE))
    assert icp.n_queries_ == icp.result_.calls["query"] > icp.n_iter_
    assert icp.transformation_.shape == (4, 4)
    copy = clone(icp)
    assert copy.get_params() == icp.get_params()
    assert not hasattr(copy, "transformation_")
    assert icp.set_params(tol=1e-3).tol == 1e-3
    with pytest.raises(InputError, match="no parameter"):
        icp.set_params(tolerance=1)


def test_init_is_where_it_starts() -> None:
    truth = np.eye(4)
    truth[:3, :3], truth[:3, 3] = ROTATION.as_matrix(), SHIFT
    icp = ICP().fit(SOURCE, TARGET, init=truth)
    assert icp.n_iter_ == 1
    np.testing.assert_allclose(icp.transformation_, truth, atol=1e-9)


def test_plane_metric() -> None:
    normals = TARGET / np.square([1.0, 0.7, 0.4])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    icp = FastICP(metric="plane").fit(SOURCE, TARGET, target_normals=normals)
    np.testing.assert_allclose(icp.transform(SOURCE), TARGET[:400], atol=1e-3)
    with pytest.raises(MismatchError, match="target_normals"):
        FastICP(metric="plane").fit(SOURCE, TARGET)


def test_welsch_ignores_outliers_that_spoil_least_squares() -> None:
    made = problem("bumpy-registration:target=1500,keep=0.6,outliers=0.1,shared=true")
    finals = [run(FastICP(loss=loss), made, budget=300, target=-math.inf).final for loss in ("welsch", "l2")]
    assert finals[0] < 0.1 * finals[1]


def test_rotation_by_pi_falls_back_to_plain_steps() -> None:
    turn = np.diag([1.0, -1.0, -1.0, 1.0])
    source = (TARGET - TARGET.mean(0)) @ turn[:3, :3] + TARGET.mean(0)
    start = turn.copy()
    start[:3, 3] = TARGET.mean(0) - turn[:3, :3] @ TARGET.mean(0)
    icp = FastICP().fit(source, TARGET, init=start)
    np.testing.assert_allclose(icp.transform(source), TARGET, atol=1e-9)


def test_motion_does_not_depend_on_units() -> None:
    small, large = FastICP().fit(SOURCE, TARGET), FastICP().fit(1000 * SOURCE, 1000 * TARGET)
    np.testing.assert_allclose(large.transformation_[:3, :3], small.transformation_[:3, :3], atol=1e-9)
    assert large.n_queries_ == small.n_queries_


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (SOURCE[:2], "at least 3"),
        (SOURCE[:, :2], "source"),
        (np.outer(np.arange(5.0), [1.0, 2.0, 3.0]), "collinear"),
        (np.where(np.arange(1200).reshape(400, 3) == 7, np.nan, SOURCE), "not finite"),
        (np.zeros((5, 3)), "collinear"),
        (np.zeros((5, 3), int), "float"),
    ],
)
def test_bad_points(source: np.ndarray, message: str) -> None:
    with pytest.raises(InputError, match=message):
        FastICP().fit(source, TARGET)


@pytest.mark.parametrize(
    "options",
    [{"metric": "line"}, {"loss": "l1"}, {"anderson": -1}, {"nu_decay": 1.0}, {"tol": -1e-5}, {"max_iter": 0}],
)
def test_bad_options(options: dict) -> None:
    with pytest.raises(InputError, match=next(iter(options))):
        FastICP(**options)


def test_transform_before_fit() -> None:
    with pytest.raises(InputError, match="fit"):
        FastICP().transform(SOURCE)
