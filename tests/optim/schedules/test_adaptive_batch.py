"""Tests of the batch size against published formulas, the growing sampler, and AdaGradNorm."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recorded_stream import parameters, set_gradients
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hasten.core.errors import InputError
from hasten.optim.persample import per_sample_gradients
from hasten.optim.schedules.adaptive_batch import (
    AdaGradNorm,
    AugmentedInnerProductTest,
    BatchSizeTest,
    CoordinateNormTest,
    InnerProductTest,
    NormTest,
)
from hasten.optim.schedules.batch_sampler import AdaptiveBatchSampler


def gradients() -> dict[str, Tensor]:
    i = torch.arange(42, dtype=torch.float64).reshape(6, 7)
    return {"a": (torch.sin(1.7 * i) + 0.5).reshape(6, 7, 1), "b": torch.cos(0.9 * i[:, :4]) * 0.3 - 0.2}


# Sizes before rounding by the formulas of tests.py of timlautk/AdAdaGrad at commit 135b9aa, on these gradients.
GOLDEN = [
    (NormTest(0.1), 108.0158425808506),
    (InnerProductTest(0.1, per_tensor=True), 8.478790037961442),
    (AugmentedInnerProductTest(0.1, 0.05, per_tensor=True), 394.0455523726207),
]


@pytest.mark.parametrize(("test", "expected"), GOLDEN)
def test_published_formulas(test: BatchSizeTest, expected: float):
    found = test.needed([g.reshape(6, -1) for g in gradients().values()])
    assert found == pytest.approx(expected, rel=1e-12)
    assert test.next_batch_size(gradients(), 2) == math.ceil(expected)


def test_whole_vectors_from_the_definitions():
    g = torch.cat([part.reshape(6, -1) for part in gradients().values()], 1)
    mean = g.mean(0)
    products = g @ mean
    inner = float(products.var() / (0.2**2 * (mean @ mean) ** 2))
    beside = g - torch.outer(products, mean) / (mean @ mean)
    across = float(beside.square().sum() / 5 / (0.3**2 * (mean @ mean)))
    parts = [part.reshape(6, -1) for part in gradients().values()]
    assert InnerProductTest(0.2).needed(parts) == pytest.approx(inner)
    assert AugmentedInnerProductTest(0.2, 0.3).needed(parts) == pytest.approx(max(inner, across))
    assert CoordinateNormTest(0.5).needed(parts) == pytest.approx(float((g.var(0) / (0.25 * mean**2)).max()))


def test_never_smaller_and_never_above_the_bound():
    assert NormTest(0.1).next_batch_size(gradients(), 500) == 500
    assert NormTest(0.1).next_batch_size(gradients(), 2, largest=64) == 64
    assert NormTest(1e3).next_batch_size(gradients(), 7) == 7


def test_micro_batches_count_for_their_samples():
    generator = torch.Generator().manual_seed(0)
    each = 1 + torch.randn(40_000, 3, generator=generator, dtype=torch.float64)
    means = each.reshape(10_000, 4, 3).mean(1)
    single = NormTest(0.05).next_batch_size(each, 1)
    assert NormTest(0.05).next_batch_size(means, 1, per_row=4) == pytest.approx(single, rel=0.05)


def test_gradients_of_a_network():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    inputs, labels = torch.randn(12, 3), torch.randint(0, 2, (12,))
    grads = per_sample_gradients(model, nn.functional.cross_entropy, inputs, labels)
    spread = sum(float(g.var(0).sum()) for g in grads.values())
    square = sum(float(g.mean(0).square().sum()) for g in grads.values())
    assert NormTest(0.5).next_batch_size(grads, 1) == math.ceil(spread / (0.25 * square))


@pytest.mark.parametrize("test", [NormTest(), InnerProductTest(), AugmentedInnerProductTest(), CoordinateNormTest()])
def test_degenerate_gradients(test: BatchSizeTest):
    assert test.next_batch_size(torch.ones(4, 3), 8) == 8
    assert test.next_batch_size(torch.zeros(4, 3), 8) == 8
    opposed = torch.tensor([[1.0, 2.0], [-1.0, -2.0]])
    if not isinstance(test, InnerProductTest) or isinstance(test, AugmentedInnerProductTest):
        assert test.next_batch_size(opposed, 8, largest=32) == 32
        with pytest.raises(InputError, match="give largest"):
            test.next_batch_size(opposed, 8)
    with pytest.raises(InputError, match="not finite"):
        test.next_batch_size(torch.tensor([[1.0], [math.nan]]), 8)
    for few in (torch.ones(1, 3), [torch.ones(3, 2), torch.ones(4, 2)]):
        with pytest.raises(InputError, match="same number n >= 2"):
            test.next_batch_size(few, 8)


def test_the_sampler_grows_within_an_epoch_and_covers_it_once():
    sampler = AdaptiveBatchSampler(range(50), 4, 16)
    seen: list[list[int]] = []
    for batch in sampler:
        seen.append(batch)
        if len(seen) == 3:
            assert sampler.grow(9) == 9
            assert sampler.grow(2) == 9
    assert [len(batch) for batch in seen] == [4, 4, 4, 9, 9, 9, 9, 2]
    assert sorted(index for batch in seen for index in batch) == list(range(50))
    assert sampler.grow(1000) == 16
    assert len(sampler) == len(list(sampler)) == 4
    assert [len(batch) for batch in AdaptiveBatchSampler(range(50), 16, drop_last=True)] == [16, 16, 16]


def test_the_sampler_in_a_loader_and_from_a_checkpoint():
    data = TensorDataset(torch.arange(30))
    sampler = AdaptiveBatchSampler(data, 4, seed=3)
    loader = iter(DataLoader(data, batch_sampler=sampler))
    next(loader)
    sampler.grow(6)
    next(loader)
    again = AdaptiveBatchSampler(data, 4, seed=3)
    again.load_state_dict(sampler.state_dict())
    rest = [batch[0].tolist() for batch in loader]
    assert [batch[0].tolist() for batch in DataLoader(data, batch_sampler=again)] == rest
    assert list(again) == list(sampler)
    assert list(AdaptiveBatchSampler(data, 4, seed=4)) != list(AdaptiveBatchSampler(data, 4, seed=3))
    with pytest.raises(InputError, match="keys"):
        again.load_state_dict({"epoch": 0})


def test_norm_from_the_formula():
    params = parameters()
    x = torch.cat([param.detach().flatten() for param in params])
    total = 0.3**2
    optimizer = AdaGradNorm(params, lr=0.5, b0=0.3, weight_decay=0.1)
    for t in range(1, 30):
        set_gradients(params, t)
        g = torch.cat([param.grad.flatten() for param in params]) + 0.1 * x
        total += float(g @ g)
        x = x - 0.5 * g / math.sqrt(total)
        optimizer.step()
    torch.testing.assert_close(torch.cat([param.detach().flatten() for param in params]), x, rtol=0, atol=1e-12)


def test_one_sum_for_all_groups():
    joint, split = parameters(), parameters()
    a, b = AdaGradNorm(joint), AdaGradNorm([{"params": split[:1]}, {"params": split[1:]}])
    for t in range(1, 10):
        set_gradients(joint, t)
        set_gradients(split, t)
        a.step()
        b.step()
    for x, y in zip(joint, split):
        torch.testing.assert_close(x, y, rtol=1e-12, atol=1e-14)


def test_a_sum_per_row():
    params = [*parameters(), nn.Parameter(torch.ones(2, 3, 2, 2, dtype=torch.float64))]
    expected = [param.detach().clone() for param in params]
    sums: list[Any] = [0.01**2] * 4
    optimizer = AdaGradNorm(params, per_row=True)
    for t in range(1, 20):
        set_gradients(params, t)
        for place, param in enumerate(params):
            g: Any = param.grad
            rows = g.square().sum(tuple(range(1, g.ndim)), keepdim=True) if g.ndim > 1 else g.square()
            sums[place] = sums[place] + rows
            expected[place] = expected[place] - g / sums[place].sqrt()
        optimizer.step()
    for param, value in zip(params, expected):
        torch.testing.assert_close(param.detach(), value, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: NormTest(0.0), "eta"),
        (lambda: InnerProductTest(-1.0), "theta"),
        (lambda: AugmentedInnerProductTest(nu=0.0), "nu"),
        (lambda: CoordinateNormTest(math.nan), "eta"),
        (lambda: AdaptiveBatchSampler(range(9), 0), "b0"),
        (lambda: AdaptiveBatchSampler(range(9), 4, 10), "b_max"),
        (lambda: AdaptiveBatchSampler([], 1), "dataset"),
        (lambda: AdaGradNorm(parameters(), b0=0.0), "b0"),
        (lambda: NormTest().next_batch_size(torch.ones(4, 3), 8, largest=4), "largest"),
    ],
)
def test_bad_arguments_are_named(make: Any, message: str):
    with pytest.raises(InputError, match=message):
        make()
