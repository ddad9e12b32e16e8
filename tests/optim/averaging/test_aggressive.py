"""The mean over every update against torch's, its norm filter, and the spread over seeds."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from recorded_stream import Network, digests, set_gradients
from torch import nn
from torch.optim.swa_utils import AveragedModel

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.run import run
from hasten.optim.averaging.aggressive import CARD, AggressiveSWA, seed_stability


def stepping(model: nn.Module, after: Callable[[], object]) -> Callable[[], None]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def step() -> None:
        optimizer.step()
        after()

    return step


def test_equals_torchs_averaged_model_updated_each_step():
    one, other = Network(), Network()
    ours, theirs = AggressiveSWA(one), AveragedModel(other)
    found = digests(list(one.parameters()), stepping(one, ours.step), list(ours.averaged_model.parameters()))
    step = stepping(other, lambda: theirs.update_parameters(other))
    expected = digests(list(other.parameters()), step, list(theirs.module.parameters()))
    torch.testing.assert_close(torch.tensor(found), torch.tensor(expected), rtol=0, atol=1e-12)


class Number(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1, dtype=torch.float64))


def test_filter_leaves_out_what_is_nearer_than_the_mean_distance():
    model = Number()
    average = AggressiveSWA(model, "norm")
    #          call: 1    2              3             4              5
    # distance:      -    4              1             3              2
    # mean before:   -    -              4             2.5            8/3
    for value, expected, taken in [(0.0, 0.0, 1), (4.0, 2.0, 2), (3.0, 2.0, 2), (5.0, 3.0, 3), (5.0, 3.0, 3)]:
        model.w.detach().fill_(value)
        average.step()
        assert next(average.averaged_model.parameters()).item() == pytest.approx(expected)
        assert average.averages == taken
    assert average.recorded == 4
    assert average.sum_of_norms == pytest.approx(10.0)


def test_filtered_average_resumes():
    models = Network(), Network()
    averages = [AggressiveSWA(model, "norm") for model in models]

    def steps(place: int, first: int, last: int) -> None:
        for t in range(first, last):
            params = list(models[place].parameters())
            set_gradients(params, t)
            torch.optim.SGD(params, lr=0.5).step()
            averages[place].step()

    steps(0, 1, 30)
    models[1].load_state_dict(models[0].state_dict())
    averages[1].load_state_dict(averages[0].state_dict())
    for place in (0, 1):
        steps(place, 30, 60)
    assert averages[0].averages == averages[1].averages < averages[0].recorded
    for ours, theirs in zip(averages[0].averaged_model.parameters(), averages[1].averaged_model.parameters()):
        assert torch.equal(ours, theirs)


def test_stability_of_seeds():
    found = seed_stability([1.0, 2.0, 4.0, 5.0])
    assert (found.mean, found.low, found.high) == (3.0, 1.0, 5.0)
    assert found.std == pytest.approx((10 / 3) ** 0.5)


def test_bad_arguments_are_named():
    with pytest.raises(InputError, match="filter"):
        AggressiveSWA(Number(), "mean")
    for values in ([1.0], [1.0, float("nan")]):
        with pytest.raises(InputError, match="metric_values"):
            seed_stability(values)


def test_a_race_measures_the_average():
    digits = problem("digits-mlp:width=8")
    averaged = run(CARD.make(lr=1e-2, filter="norm"), digits, budget=20, every=20, target=-1.0)
    assert averaged.status == "budget", averaged.message
    assert averaged.final < averaged.metric[0]
