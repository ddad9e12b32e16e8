"""Error feedback: each method against its published recursion, written out independently."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import hasten
from hasten.core.errors import InputError
from hasten.distributed import (
    EF14,
    EF21,
    DataParallelSGD,
    EControl,
    FederatedMethod,
    Identity,
    LowRank,
    NaiveCompression,
    PermK,
    RandK,
    TopK,
    econtrol_strength,
    ef21_stepsize,
    smoothness,
)

N, D, K, LR = 6, 12, 3, 0.3
PROBLEM = hasten.problem("hetero-quadratic", n=N, dim=D)


def top(v: np.ndarray) -> np.ndarray:
    out = np.zeros_like(v)
    for row, kept in zip(v, out):
        places = np.argsort(-np.abs(row))[:K]
        kept[places] = row[places]
    return out


def answers(method: FederatedMethod, rounds: int = 25, problem: hasten.Problem = PROBLEM, seed: int = 0) -> np.ndarray:
    instance = problem.build(seed)
    state = method.init(instance, torch.Generator().manual_seed(seed))
    out = []
    for _ in range(rounds):
        state = method.step(instance, state)
        out.append(state.x.numpy())
    return np.array(out)


def pieces() -> tuple[np.ndarray, np.ndarray]:
    instance: Any = PROBLEM.build(0)
    return instance.A.numpy(), instance.b.numpy()


def econtrol(eta: float, exact: bool = True) -> np.ndarray:
    A, b = pieces()
    x = np.zeros(D)
    e, h = np.zeros((N, D)), (A @ x - b if exact else np.zeros((N, D)))
    H = h.mean(0)
    out = []
    for _ in range(25):
        g = A @ x - b
        delta = top(eta * e + g - h)
        e = e + g - h - delta
        h = h + delta
        H = H + delta.mean(0)
        x = x - LR * H
        out.append(x)
    return np.array(out)


def ef21(weights: np.ndarray) -> np.ndarray:
    A, b = pieces()
    x = np.zeros(D)
    g = (A @ x - b) / (N * weights[:, None])
    out = []
    for _ in range(25):
        x = x - LR * (weights[:, None] * g).sum(0)
        out.append(x)
        g = g + top((A @ x - b) / (N * weights[:, None]) - g)
    return np.array(out)


def ef14() -> np.ndarray:
    A, b = pieces()
    x, e = np.zeros(D), np.zeros((N, D))
    out = []
    for _ in range(25):
        p = e + LR * (A @ x - b)
        delta = top(p)
        e = p - delta
        x = x - delta.mean(0)
        out.append(x)
    return np.array(out)


def test_econtrol_is_the_published_recursion() -> None:
    assert np.allclose(answers(EControl(TopK(K), lr=LR, eta=0.07)), econtrol(0.07), rtol=0, atol=1e-11)
    assert np.allclose(
        answers(EControl(TopK(K), lr=LR, eta=0.07, init="zero")), econtrol(0.07, False), rtol=0, atol=1e-11
    )


def test_ef21_is_the_published_recursion() -> None:
    assert np.allclose(answers(EF21(TopK(K), lr=LR)), ef21(np.full(N, 1 / N)), rtol=0, atol=1e-11)
    weights = np.arange(1.0, N + 1) / np.arange(1.0, N + 1).sum()
    assert np.allclose(answers(EF21(TopK(K), lr=LR, weights=weights.tolist())), ef21(weights), rtol=0, atol=1e-11)


def test_ef14_is_the_published_recursion() -> None:
    assert np.allclose(answers(EF14(TopK(K), lr=LR)), ef14(), rtol=0, atol=1e-11)


def test_econtrol_without_feedback_is_ef21_to_the_last_bit() -> None:
    assert np.array_equal(answers(EControl(TopK(K), lr=LR, eta=0.0)), answers(EF21(TopK(K), lr=LR)))


@pytest.mark.parametrize("init", ["exact", "zero"])
def test_equal_weights_are_plain_ef21(init: str) -> None:
    plain = answers(EF21(TopK(K), lr=LR, init=init))
    weighted = answers(EF21(TopK(K), lr=LR, init=init, weights=[1 / N] * N))
    assert np.abs(plain - weighted).max() <= 1e-12 * np.abs(plain).max()


@pytest.mark.parametrize("make", [EF14, EF21, EControl, NaiveCompression])
def test_without_compression_all_are_gradient_descent(make: Any) -> None:
    assert np.allclose(answers(make(Identity(), lr=LR)), answers(DataParallelSGD(lr=LR)), rtol=0, atol=1e-11)


def test_virtual_iterate_of_econtrol_follows_exact_sgd() -> None:
    instance: Any = PROBLEM.build(0)
    method = EControl(TopK(K), lr=LR, eta=0.07)
    state = method.init(instance, torch.Generator().manual_seed(0))
    # x_t - lr mean e_t obeys y <- y - lr grad f(x_t), whatever the compressor dropped.
    for _ in range(20):
        virtual = state.x - LR * state.memory["e"].mean(0)
        expected = virtual - LR * (instance.A @ state.x - instance.b).mean(0)
        state = method.step(instance, state)
        assert torch.allclose(state.x - LR * state.memory["e"].mean(0), expected, rtol=0, atol=1e-10)


def test_server_knows_the_mean_of_the_clients_estimates() -> None:
    for method in (
        EF21(TopK(2), participation=0.5),
        EControl(RandK(2, scaled=False)),
        EF21(TopK(2), weights="smoothness"),
    ):
        instance = PROBLEM.build(1)
        state = method.init(instance, torch.Generator().manual_seed(1))
        for _ in range(10):
            state = method.step(instance, state)
        weights = state.server["settings"].weights
        assert torch.allclose(weights @ state.memory["h"], state.server["h"], atol=1e-10)


def test_weighted_ef21_finds_the_same_solution() -> None:
    problem = hasten.problem("hetero-quadratic", n=8, dim=6, L_spread=20.0, cond=3.0)
    trace = hasten.run(EF21(TopK(2), weights="smoothness"), problem, budget=3000, target=1e-6, every=100)
    assert trace.status == "reached"


def test_unlike_workers_stop_what_has_no_estimate() -> None:
    found = {
        make.__name__: hasten.run(make(TopK(K), lr=LR), PROBLEM, budget=600, target=1e-10, every=50).best
        for make in (EF21, EControl, EF14, NaiveCompression)
    }
    assert max(found["EF21"], found["EControl"]) <= 1e-10
    assert found["EF14"] > 1e-3
    assert found["NaiveCompression"] > 1e-1


def test_compressors_with_state_and_common_keys() -> None:
    for codec in (LowRank(1), PermK(N)):
        method = NaiveCompression(codec, lr=0.05)
        trace = hasten.run(method, PROBLEM, budget=100, target=0.0)
        assert trace.final < 0.7 * trace.metric[0]


def test_absent_clients_keep_their_memory_and_send_nothing() -> None:
    instance = PROBLEM.build(0)
    method = EF21(TopK(2), lr=0.1, participation=0.4)
    state = method.init(instance, torch.Generator().manual_seed(0))
    state = method.step(instance, state)
    for _ in range(10):
        before, sent = state.memory["h"].clone(), instance.up_bytes
        state = method.step(instance, state)
        moved = int((state.memory["h"] != before).any(1).sum())
        assert instance.up_bytes - sent == moved * 2 * (8 + 4)
        assert moved < N


def test_momentum_of_one_step_is_a_running_mean() -> None:
    instance: Any = PROBLEM.build(0)
    method = EF21(Identity(), lr=LR, momentum=0.75)
    state = method.init(instance, torch.Generator())
    v = -instance.b
    for _ in range(5):
        v = 0.25 * (instance.A @ state.x - instance.b) + 0.75 * v
        state = method.step(instance, state)
        assert torch.allclose(state.memory["v"], v)


def test_theory_step_sizes() -> None:
    # Top-1 of 20: xi = sqrt(.95)/(1 - sqrt(.95)); 49 constants of 1 and one of 100: L_AM 2.98, L_QM 14.177.
    L_i = [1.0] * 49 + [100.0]
    xi = 0.95**0.5 / (1 - 0.95**0.5)
    assert ef21_stepsize(3.0, L_i, 0.05, weighted=True) == pytest.approx(1 / (3 + 2.98 * xi))
    assert ef21_stepsize(3.0, L_i, 0.05, weighted=False) == pytest.approx(1 / (3 + 200.98**0.5 * xi), rel=1e-9)
    assert ef21_stepsize(3.0, L_i, 1.0, weighted=False) == pytest.approx(1 / 3)
    assert econtrol_strength(0.1) == pytest.approx(0.1 / (3 * 0.9**0.5 * (1 + 0.9**0.5)))
    assert econtrol_strength(1.0) == float("inf")
    assert EControl(Identity()).settings(PROBLEM.build(0)).eta == 1.0


def test_smoothness_of_quadratics() -> None:
    instance: Any = hasten.problem("hetero-quadratic", n=5, dim=8, L_spread=7.0, noise=1.0).build(0)
    L, L_i = smoothness(instance, iterations=300)
    assert pytest.approx(instance.L, rel=1e-4) == L
    assert torch.allclose(L_i, instance.L_i, rtol=1e-3)
    assert instance.calls["hvp"] == 2 * 5 * 300
    settings = EF21(TopK(2)).settings(instance)
    assert settings.lr == pytest.approx(ef21_stepsize(instance.L, instance.L_i, 0.25, weighted=False), rel=1e-2)


def test_feedback_above_the_proved_bound_warns() -> None:
    bound = 1.5 * econtrol_strength(0.25)
    with pytest.warns(UserWarning, match="expect divergence"):
        EControl(TopK(3), eta=1.01 * bound).settings(PROBLEM.build(0))
    EControl(TopK(3), eta=0.99 * bound).settings(PROBLEM.build(0))


@pytest.mark.parametrize(
    ("method", "message"),
    [
        (lambda: EControl(RandK(3)), "give eta yourself"),
        (lambda: EF21(RandK(3)), "give lr yourself"),
        (lambda: EF21(lr=0.1, weights="smoothness", L_i=[0.0] * N), "L_i must be positive"),
        (lambda: EF21(lr=0.1, weights="smoothness", L_i=[1.0]), "one constant per client, 6, got 1"),
        (lambda: EF21(lr=0.1, weights=[0.5] * N), "sum to 1"),
        (lambda: EF21(lr=0.1, weights="size"), "weights must be one of 'smoothness'"),
        (lambda: EF21(lr="qm"), "lr must be one of 'am'"),
        (lambda: EF21(lr=-1.0), r"lr must be a real number in \(0"),
        (lambda: EF21(L=0.0), "L must be"),
        (lambda: EF21(participation=0.0), "participation"),
        (lambda: EControl(init="warm"), "init must be one of 'exact', 'zero'"),
        (lambda: EControl(eta=-0.1), "eta must be"),
        (lambda: EF14(lr=float("nan")), "lr must be"),
    ],
)
def test_bad_arguments(method: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        method().init(PROBLEM.build(0), torch.Generator())
