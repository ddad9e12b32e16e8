"""Weight averages: their definition, buffers, half precision, and that training never sees them."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stream import Network, digests
from torch import nn

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.run import run
from hasten.optim.averaging.weights import CARD, LatestWeightAverage, PolynomialAverager

# Digests after 1, 2, 10, 100 steps of SGD (lr 0.1) with averager.py of formll/dog at commit 8d45cf5, float64.
GOLDEN = {
    8.0: [
        [-0.6759088885302701, -13.3909113892583],
        [-0.6856539189002809, -12.775455213441909],
        [-0.633155849034343, -13.456298438913743],
        [-0.5972519880603819, -12.872701353971364],
    ],
    0.0: [
        [-0.6759088885302701, -13.3909113892583],
        [-0.6813227942913875, -13.048991291582528],
        [-0.6041080021204073, -12.80660927447466],
        [-0.5969300975906663, -12.74794867333691],
    ],
}


@pytest.mark.parametrize("gamma", GOLDEN)
def test_polynomial_average_is_the_authors(gamma: float):
    model = Network()
    optimizer, average = torch.optim.SGD(model.parameters(), lr=0.1), PolynomialAverager(model, gamma)

    def step() -> None:
        optimizer.step()
        average.step()

    found = digests(list(model.parameters()), step, list(average.averaged_model.parameters()))
    torch.testing.assert_close(*torch.tensor([found, GOLDEN[gamma]], dtype=torch.float64), rtol=0, atol=1e-12)


class Tiny(nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2, dtype=dtype))
        self.register_buffer("mean", torch.zeros(1, dtype=dtype))
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))

    def put(self, value: float) -> None:
        self.w.data.fill_(value)
        self.mean.fill_(10 * value)
        self.count.add_(1)


@settings(max_examples=30, deadline=None)
@given(
    values=st.lists(st.floats(-100, 100), min_size=1, max_size=30),
    k=st.integers(1, 6),
    every=st.integers(1, 5),
    start=st.integers(0, 8),
)
def test_latest_average_is_the_mean_of_the_queue(values: list[float], k: int, every: int, start: int):
    model = Tiny()
    average = LatestWeightAverage(model, k=k, every=every, start=start)
    taken: list[float] = []
    for call, value in enumerate(values, 1):
        model.put(value)
        average.step()
        if call > start and (call - start) % every == 0:
            taken.append(value)
    if not taken:
        assert average.best_model is model
        assert float(average.averaged_model.w[0]) == 0.0
        return
    expected = sum(taken[-k:]) / len(taken[-k:])
    found = average.best_model
    assert found is average.averaged_model
    assert found.w.detach().tolist() == pytest.approx([expected] * 2, abs=1e-12)
    assert float(found.mean) == pytest.approx(10 * expected, abs=1e-11)
    assert int(found.count) == max(c for c in range(1, len(values) + 1) if c > start and (c - start) % every == 0)
    assert model.w.detach().tolist() == [values[-1]] * 2, "the network in training must stay as it is"


def test_buffers_of_the_latest_if_asked():
    model = Tiny()
    average = LatestWeightAverage(model, k=2, average_buffers=False)
    for value in (1.0, 3.0):
        model.put(value)
        average.step()
    assert float(average.averaged_model.w[0]) == 2.0
    assert float(average.averaged_model.mean) == 30.0


@pytest.mark.parametrize("average", [LatestWeightAverage, PolynomialAverager])
def test_swap_and_back(average: type):
    model = Tiny()
    made = average(model)
    for value in (1.0, 2.0):
        model.put(value)
        made.step()
    expected = made.averaged_model.w.detach().clone()

    def interrupted() -> None:
        with made.swap() as swapped:
            assert swapped is model
            assert torch.equal(model.w, expected)
            raise RuntimeError

    with pytest.raises(RuntimeError):
        interrupted()
    assert model.w.detach().tolist() == [2.0, 2.0]
    assert torch.equal(made.averaged_model.w, expected)


def test_polynomial_average_of_half_precision_does_not_stall():
    """In bfloat16 itself, 1 + c would be 1 once c is below 2^-8."""
    model = Tiny(torch.bfloat16)
    average = PolynomialAverager(model, gamma=0.0)
    model.put(1.0)
    for step in range(2000):
        if step == 1000:
            model.put(2.0)
        average.step()
    assert float(average.averaged_model.w[0]) == pytest.approx(1.5, abs=0.01)
    assert average.averaged_model.w.dtype == torch.bfloat16


def test_averaged_model_takes_no_gradient():
    average = LatestWeightAverage(Tiny())
    assert not any(param.requires_grad for param in average.averaged_model.parameters())
    assert all(param.requires_grad for param in average.model.parameters())


def test_two_averages_share_nothing():
    first, second = Tiny(), Tiny()
    one, other = LatestWeightAverage(first), LatestWeightAverage(second)
    first.put(1.0)
    one.step()
    assert len(other.queue) == 0
    first.put(5.0)
    assert float(one.queue[0][0][0]) == 1.0, "a checkpoint must not alias the live weights"


def test_state_of_another_network_is_refused():
    with pytest.raises(InputError, match="other tensors"):
        PolynomialAverager(nn.Linear(2, 2)).load_state_dict(PolynomialAverager(nn.Linear(3, 2)).state_dict())


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"k": 0}, "k must"),
        ({"every": 0}, "every"),
        ({"every": "step"}, "'epoch' or a number"),
        ({"start": -1}, "start"),
    ],
)
def test_bad_arguments_are_named(hyper: dict, message: str):
    with pytest.raises(InputError, match=message):
        LatestWeightAverage(Tiny(), **hyper)
    with pytest.raises(InputError, match="gamma"):
        PolynomialAverager(Tiny(), gamma=-1.0)
    with pytest.raises(InputError, match=r"torch\.nn\.Module"):
        PolynomialAverager([torch.zeros(2)])  # type: ignore[arg-type]


def test_a_race_measures_the_average():
    digits = problem("digits-cnn")
    averaged = run(CARD.make(lr=1e-2, k=3, every=5), digits, budget=40, every=40, target=-1.0)
    plain = run(CARD.make(lr=1e-2, k=1, every=1), digits, budget=40, every=40, target=-1.0)
    assert averaged.status == plain.status == "budget", averaged.message + plain.message
    assert averaged.final < averaged.metric[0]
    assert averaged.final != plain.final
