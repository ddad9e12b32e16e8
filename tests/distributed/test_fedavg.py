"""Federated averaging, the baseline, participation, and the kind of problem they run on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import hasten
from hasten.core.errors import InputError
from hasten.core.kinds.federate import Federation, federation
from hasten.distributed import DataParallelSGD, FedAvg
from hasten.distributed.base import participants
from hasten.numerics import keys

QUADRATIC = hasten.problem("hetero-quadratic", n=4, dim=6)


def shards(counts: tuple[int, ...] = (5, 20, 9)) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randn(count, 3, generator=generator), torch.randn(count, 1, generator=generator)) for count in counts
    ]


def own(**options: Any) -> hasten.Problem:
    return federation("own", lambda: nn.Linear(3, 1), options.pop("data", shards()), nn.functional.mse_loss, **options)


def test_round_is_the_average_of_local_runs() -> None:
    instance: Any = QUADRATIC.build(0)
    method = FedAvg(lr=0.1, local_steps=4, server_lr=0.5)
    state = method.step(instance, method.init(instance, torch.Generator()))
    rows = []
    for A, b in zip(instance.A, instance.b):
        x = torch.zeros(6, dtype=torch.float64)
        for _ in range(4):
            x = x - 0.1 * (A @ x - b)
        rows.append(x)
    assert torch.allclose(state.x, 0.5 * torch.stack(rows).mean(0), atol=1e-12)
    assert instance.calls["gradient"] == 16
    assert instance.up_bytes == instance.down_bytes == 4 * 6 * 8
    assert instance.bytes_sent == 2 * 4 * 6 * 8


def test_one_local_step_is_data_parallel_sgd() -> None:
    local = hasten.run(FedAvg(lr=0.2, local_steps=1), QUADRATIC, budget=20)
    plain = hasten.run(DataParallelSGD(lr=0.2), QUADRATIC, budget=20)
    assert local.metric == pytest.approx(plain.metric, rel=1e-9)


def test_more_local_steps_trade_rounds_for_a_residual_error() -> None:
    few, many = (hasten.run(FedAvg(lr=0.1, local_steps=k), QUADRATIC, budget=300, target=0.0) for k in (1, 10))
    assert many.cost_to(0.5) < few.cost_to(0.5)
    assert many.final > 1e-3 > few.final


def test_weights_by_samples_or_uniform() -> None:
    problem = own(batch_size=4)
    instance: Any = problem.build(0)
    assert torch.allclose(instance.weights, torch.tensor([5.0, 20, 9]) / 34)
    method = FedAvg(lr=0.1, local_steps=1, weighting="uniform")
    state = method.init(instance, torch.Generator().manual_seed(0))
    key = keys.fold(keys.fold(keys.fold(state.key, 1), torch.arange(3)), 1)
    batches = instance.draw(torch.arange(3), 1, key)
    rows = [instance.gradient(state.x, (x[0], y[0])) for x, y in zip(*batches)]
    assert torch.allclose(method.step(instance, state).x, state.x - 0.1 * torch.stack(rows).mean(0), atol=1e-6)


def test_participants() -> None:
    assert participants(10, 1.0, False, keys.key(0)) is None
    seen = torch.zeros(10)
    for round in range(300):
        chosen = participants(10, 0.3, False, keys.fold(keys.key(0), round))
        assert chosen is not None
        assert len(chosen) == 3
        assert bool((chosen.diff() > 0).all())
        seen[chosen] += 1
    assert bool(((seen - 90).abs() < 4 * (300 * 0.3 * 0.7) ** 0.5).all())
    draws = [participants(10, 0.3, True, keys.fold(keys.key(1), round)) for round in range(300)]
    coins = [len(chosen) for chosen in draws if chosen is not None]
    assert sum(coins) / 300 == pytest.approx(3, abs=0.4)
    assert len(set(coins)) > 3


def test_a_round_without_clients_keeps_the_model() -> None:
    instance = QUADRATIC.build(0)
    method = FedAvg(participation=1e-9)
    method.independent = True
    state = method.init(instance, torch.Generator())
    after = method.step(instance, state)
    assert torch.equal(after.x, state.x)
    assert after.round == 1
    assert instance.bytes_sent == 0


def test_callers_threads_are_restored() -> None:
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        hasten.run(FedAvg(), QUADRATIC, budget=2)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)


def test_own_problem_trains_the_users_network() -> None:
    seen = []

    def metric(network: nn.Module) -> float:
        seen.append(network)
        return float(network.weight.detach().square().sum())  # type: ignore[union-attr, operator]

    trace = hasten.run(FedAvg(lr=0.05), own(metric=metric), budget=3)
    assert isinstance(seen[-1], nn.Linear)
    assert len(trace.metric) == 4
    losses = hasten.run(FedAvg(lr=0.05), own(batch_size=8), budget=30)
    assert losses.final < losses.metric[0]


def test_gradients_of_all_clients_and_of_some() -> None:
    instance: Any = own(batch_size=None, data=shards((6, 6))).build(0)
    found = instance.gradients(instance.x0)
    weight, bias = instance.x0[:3], instance.x0[3]
    for (inputs, labels), row in zip(shards((6, 6)), found):
        residual = inputs @ weight + bias - labels[:, 0]
        assert torch.allclose(row[:3], 2 * (residual[:, None] * inputs).mean(0), atol=1e-6)
        assert torch.allclose(row[3], 2 * residual.mean(), atol=1e-6)
    assert instance.calls["gradient"] == 2
    points = torch.stack([instance.x0, instance.x0 + 1])
    assert torch.allclose(instance.gradients(points)[0], found[0])
    assert not torch.allclose(instance.gradients(points)[1], found[1])
    assert instance.gradients(instance.x0, torch.tensor([1])).shape == (1, 4)
    assert instance.calls["gradient"] == 7
    v = torch.eye(4)[:2]
    assert torch.allclose(
        instance.hvp(instance.x0, v)[0], (instance.gradients(instance.x0 + v[0]) - found)[0], atol=1e-5
    )


def test_draws_depend_on_the_client_not_on_the_company() -> None:
    instance: Any = own(batch_size=2).build(0)
    key = keys.fold(keys.key(5), torch.arange(3))
    whole = instance.draw(torch.arange(3), 3, key)
    alone = instance.draw(torch.tensor([2]), 3, key[2:])
    assert torch.equal(whole[0][2], alone[0][0])
    data = shards()
    for client in range(3):
        rows = {tuple(row) for row in data[client][0].tolist()}
        assert {tuple(row) for row in whole[0][client].flatten(0, 1).tolist()} <= rows


def test_counting_the_wire() -> None:
    instance = QUADRATIC.build(0)
    instance.uplink({"a": torch.zeros(3), "b": torch.zeros(2, dtype=torch.float64)})
    instance.downlink(torch.zeros(5), copies=4)
    assert (instance.up_bytes, instance.down_bytes, instance.bytes_sent) == (28, 80, 108)
    instance.bytes_sent = 0
    assert (instance.up_bytes, instance.down_bytes) == (0, 0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FedAvg(lr=0.0), "lr must be"),
        (lambda: FedAvg(local_steps=0), "local_steps must be an integer of at least 1"),
        (lambda: FedAvg(participation=1.5), "participation must be"),
        (lambda: FedAvg(weighting="size"), "weighting must be one of"),
        (lambda: DataParallelSGD(momentum=1.0), "momentum must be"),
        (lambda: own(batch_size=0), "batch_size must be"),
        (lambda: own(data=[]).build(0), "at least one client"),
        (lambda: own(data=[(torch.ones(2, 3), torch.ones(3, 1))]).build(0), "client 0: inputs and labels"),
        (lambda: own(data=shards((3, 4)), batch_size=None).build(0), "equally many samples"),
        (
            lambda: federation("bn", lambda: nn.BatchNorm1d(3), shards(), nn.functional.mse_loss).build(0),
            "use GroupNorm or LayerNorm",
        ),
        (lambda: Federation(2, torch.zeros(3), lambda *_: (), float), "a loss or a gradient"),
        (lambda: Federation(2, torch.zeros(3, 1), lambda *_: (), float, loss=lambda x, _: x.sum()), r"shape \(3, 1\)"),
        (
            lambda: Federation(
                2, torch.zeros(3), lambda *_: (), float, loss=lambda x, _: x.sum(), weights=torch.tensor([0.5, 0.6])
            ),
            "2 shares",
        ),
    ],
)
def test_bad_arguments(make: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make()
