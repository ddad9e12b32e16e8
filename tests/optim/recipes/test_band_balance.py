"""Bands that add up, dropped bands, and factors that follow the learning curves."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import BandBalancer, FrequencyBandModel


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 1000), length=st.sampled_from([16, 24, 40]), transform=st.sampled_from(["fft", "haar"]))
def test_bands_add_up_to_the_series_and_are_orthogonal(seed: int, length: int, transform: str):
    x = torch.randn(3, length, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    model = FrequencyBandModel(nn.Identity, (0.2, 0.5, 1.0) if transform == "fft" else 3, transform)
    bands = model.split(x)
    torch.testing.assert_close(torch.stack(bands).sum(0), x)
    torch.testing.assert_close(model(x), x)
    for a, b in ((a, b) for i, a in enumerate(bands) for b in bands[:i]):
        assert float((a * b).sum().abs()) < 1e-9


@pytest.mark.parametrize(("period", "place"), [(64, 0), (8, 1), (3, 2)])
def test_a_sine_is_in_its_band(period: int, place: int):
    time = torch.arange(192, dtype=torch.float64)
    x = torch.sin(2 * math.pi * time / period).unsqueeze(0)
    energy = [float(band.square().sum()) for band in FrequencyBandModel(nn.Identity, (0.1, 0.4, 1.0)).split(x)]
    assert energy[place] == pytest.approx(96.0, rel=1e-6)
    assert sum(energy) == pytest.approx(96.0, rel=1e-6)


def test_haar_levels_are_means_over_powers_of_two():
    x = torch.tensor([[1.0, 3.0, 5.0, 5.0]])
    rest, coarse, fine = FrequencyBandModel(nn.Identity, 2, "haar").split(x)
    assert torch.equal(rest, torch.full((1, 4), 3.5))
    assert torch.equal(coarse, torch.tensor([[-1.5, -1.5, 1.5, 1.5]]))
    assert torch.equal(fine, torch.tensor([[-1.0, 1.0, 0.0, 0.0]]))


def test_bands_without_energy_are_dropped():
    x = torch.sin(2 * math.pi * torch.arange(64) / 8).unsqueeze(0)
    model = FrequencyBandModel(lambda: nn.Linear(64, 4), (0.1, 0.4, 1.0), reference=x)
    assert model.kept == [1]
    assert len(model.models) == len(model.outputs(x)) == 1
    with pytest.raises(InputError, match="zero in all bands"):
        FrequencyBandModel(nn.Identity, reference=torch.zeros(1, 64))


def balancer(count: int = 2, **options: Any) -> tuple[list[nn.Parameter], torch.optim.SGD, BandBalancer]:
    params = [nn.Parameter(torch.ones(2)) for _ in range(count)]
    optimizer = torch.optim.SGD(params, lr=0.1)
    return params, optimizer, BandBalancer(optimizer, [[param] for param in params], **options)


def curve(start: float, rate: float, floor: float = 0.0) -> list[float]:
    return [floor + start * math.exp(-rate * t) for t in range(5)]


@pytest.mark.parametrize(
    ("train", "val", "status", "raw"),
    [
        (curve(1, 0.1), curve(1, -0.1), "overfitting", 0.8),
        ([0.5] * 5, [0.5] * 5, "underfitting", 1.2),
        (curve(1, 0.02), curve(1, 0.02), "underfitting", 1.2),
    ],
)
def test_status_and_factors(train: list[float], val: list[float], status: str, raw: float):
    """Beside a band that learns fast and keeps its factor."""
    _, _, found = balancer()
    for t in range(5):
        factors = found.end_epoch([train[t], math.exp(-t)], [val[t], math.exp(-t)])
    assert found.status == [status, "learning"]
    assert factors == pytest.approx([2 * raw / (raw + 1), 2 / (raw + 1)])


def test_a_flat_band_that_has_fallen_is_converged():
    _, _, found = balancer(window=2)
    for losses in ([1.0, 1.0], [0.2, 0.9], [0.2, 0.5]):
        found.end_epoch(losses, losses)
    assert found.status[0] == "converged"
    assert found.factors[0] < found.factors[1]


def test_factors_stay_in_their_bounds_with_mean_one_inside():
    _, _, found = balancer(bounds=(0.5, 1.4))
    for t in range(40):
        factors = found.end_epoch([math.exp(-0.05 * t), 0.5], [math.exp(0.05 * t), 0.9])
        assert all(0.5 <= factor <= 1.4 for factor in factors)
    assert factors == [0.5, 1.4]


def test_gradients_are_scaled_and_nothing_before_the_window():
    params, optimizer, found = balancer(window=3)

    def step() -> list[Tensor]:
        before = [param.detach().clone() for param in params]
        for param in params:
            param.grad = torch.ones(2)
        optimizer.step()
        return [(old - param.detach()) / 0.1 for param, old in zip(params, before)]

    for t in range(3):
        torch.testing.assert_close(step(), [torch.ones(2)] * 2)
        found.end_epoch([math.exp(-0.1 * t), 0.5], [math.exp(0.1 * t), 0.5])
    assert found.factors != [1.0, 1.0]
    torch.testing.assert_close(step(), [torch.full((2,), factor) for factor in found.factors])


def test_continues_from_a_saved_state():
    _, _, found = balancer(window=3)
    losses = [[math.exp(-0.1 * t), 0.5] for t in range(8)]
    for t in range(4):
        found.end_epoch(losses[t], losses[t])
    saved = copy.deepcopy(found.state_dict())
    _, _, again = balancer(window=3)
    again.load_state_dict(saved)
    for t in range(4, 8):
        assert found.end_epoch(losses[t], losses[t]) == again.end_epoch(losses[t], losses[t])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 1}, "window"),
        ({"up": 0.9}, "up"),
        ({"down": 0.0}, "down"),
        ({"bounds": (0.0, 2.0)}, r"bounds\[0\]"),
        ({"bounds": (0.5, 0.9)}, r"bounds\[1\]"),
        ({"tolerance": 0.0}, "tolerance"),
    ],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        balancer(**options)


def test_bad_losses_and_bands_are_named():
    _, _, found = balancer()
    with pytest.raises(InputError, match="val_losses must be 2"):
        found.end_epoch([1.0, 1.0], [1.0])
    with pytest.raises(InputError, match="train_losses"):
        found.end_epoch([1.0, math.nan], [1.0, 1.0])
    assert found.train == []
    with pytest.raises(InputError, match="must increase and end with 1"):
        FrequencyBandModel(nn.Identity, (0.5, 0.2, 1.0))
    with pytest.raises(InputError, match="multiple of 8"):
        FrequencyBandModel(nn.Identity, 3, "haar").split(torch.zeros(1, 12))
