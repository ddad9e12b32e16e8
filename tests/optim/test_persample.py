"""Per-sample gradients against a loop over samples; running statistics against the plain ones."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.functional import cross_entropy

from hasten.core.errors import InputError
from hasten.optim.persample import MicroBatches, per_sample_gradients


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.GroupNorm(2, 8), nn.Linear(8, 3)).double()


def samples(count: int = 6) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    inputs = torch.randn(count, 1, 4, 4, generator=generator, dtype=torch.float64)
    return inputs, torch.randint(3, (count,), generator=generator)


@pytest.mark.parametrize("chunk_size", [None, 4])
def test_equals_a_loop_over_samples(chunk_size: int | None):
    model, (inputs, labels) = network(), samples()
    model[0].bias.requires_grad_(False)
    found = per_sample_gradients(model, cross_entropy, inputs, labels, chunk_size)
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    assert found.keys() == trained.keys()
    for place in range(len(inputs)):
        loss = cross_entropy(model(inputs[place : place + 1]), labels[place : place + 1])
        for name, expected in zip(trained, torch.autograd.grad(loss, list(trained.values()))):
            torch.testing.assert_close(found[name][place], expected, rtol=1e-12, atol=1e-14)
    whole = torch.autograd.grad(cross_entropy(model(inputs), labels), list(trained.values()))
    torch.testing.assert_close([found[name].mean(0) for name in trained], list(whole), rtol=1e-12, atol=1e-14)
    assert all(param.grad is None for param in model.parameters())


def test_tied_weights_get_the_sum():
    model = nn.Sequential(nn.Linear(2, 2, bias=False), nn.Tanh(), nn.Linear(2, 2, bias=False)).double()
    model[2].weight = model[0].weight
    inputs = torch.randn(3, 2, dtype=torch.float64)
    labels = torch.tensor([0, 1, 0])
    found = per_sample_gradients(model, cross_entropy, inputs, labels)
    (whole,) = torch.autograd.grad(cross_entropy(model(inputs), labels), [model[0].weight])
    torch.testing.assert_close(found["0.weight"].mean(0), whole)


def test_batch_norm_and_bad_batches_are_refused():
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    inputs, labels = torch.randn(4, 2), torch.tensor([0, 1, 0, 1])
    with pytest.raises(InputError, match="1 is a BatchNorm1d"):
        per_sample_gradients(model, cross_entropy, inputs, labels)
    assert per_sample_gradients(model.eval(), cross_entropy, inputs, labels)["0.weight"].shape == (4, 2, 2)
    for bad in (labels[:3], labels[:0]):
        with pytest.raises(InputError, match="one length > 0"):
            per_sample_gradients(model, cross_entropy, inputs[: 4 if len(bad) else 0], bad)


@settings(max_examples=25, deadline=None)
@given(count=st.integers(2, 9), offset=st.sampled_from([0.0, 1e6]), seed=st.integers(0, 99))
def test_statistics_are_the_plain_ones(count: int, offset: float, seed: int):
    generator = torch.Generator().manual_seed(seed)
    grads = torch.randn(count, 3, 2, generator=generator, dtype=torch.float64) + offset
    seen: MicroBatches[str] = MicroBatches()
    for g in grads:
        seen.add({"w": g})
    assert seen.count == count
    torch.testing.assert_close(seen.mean["w"], grads.mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen.mean_square["w"], grads.square().mean(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(seen.variance["w"], grads.var(0), rtol=1e-7, atol=1e-12)


def test_half_precision_is_accumulated_in_single():
    seen: MicroBatches[str] = MicroBatches()
    for value in (1.0, 1.0078125, 1.0078125):
        seen.add({"w": torch.full((1,), value, dtype=torch.bfloat16)})
    assert seen.mean["w"].dtype == torch.float32
    assert float(seen.mean["w"]) == pytest.approx(1.0052083, abs=1e-6)


def test_the_caller_keeps_its_tensors():
    g = torch.ones(2)
    seen: MicroBatches[str] = MicroBatches()
    seen.add({"w": g})
    g.zero_()
    seen.mean["w"].zero_()
    assert torch.equal(seen.mean["w"], torch.ones(2))


def test_misuse_is_refused():
    seen: MicroBatches[str] = MicroBatches()
    with pytest.raises(InputError, match="at least 1"):
        _ = seen.mean
    with pytest.raises(InputError, match="complex"):
        seen.add({"w": torch.ones(2, dtype=torch.complex64)})
    seen.add({"w": torch.ones(2)})
    with pytest.raises(InputError, match="at least 2"):
        _ = seen.variance
    with pytest.raises(InputError, match="the same names"):
        seen.add({"w": torch.ones(2), "b": torch.ones(2)})
    with pytest.raises(InputError, match="shaped"):
        seen.add({"w": torch.ones(3)})
    assert seen.count == 1
    seen.clear()
    seen.add({"b": torch.ones(1)})
    assert seen.count == 1
