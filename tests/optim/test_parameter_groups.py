"""Helpers that make parameter groups."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import hasten
from hasten.core.errors import InputError
from hasten.optim import Frugal, hidden_matrices, layerwise, no_decay


def network() -> nn.Module:
    return nn.Sequential(nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def names(group: dict) -> list[str]:
    return [name for name, _ in group["params"]]


def test_norms_and_biases_do_not_decay() -> None:
    decayed, free = no_decay(network(), 0.1)
    assert names(decayed) == ["0.weight", "2.weight", "4.weight"]
    assert decayed["weight_decay"] == 0.1
    assert free["weight_decay"] == 0.0
    assert names(free) == ["1.weight", "1.bias", "2.bias", "3.weight", "3.bias", "4.bias"]


def test_further_parameters_may_be_exempt() -> None:
    decayed, free = no_decay(network(), 0.1, embeddings=True, skip=lambda name, _: name.startswith("4"))
    assert names(decayed) == ["2.weight"]
    assert "0.weight" in names(free)
    assert "4.weight" in names(free)


def test_frozen_parameters_are_left_out_and_tied_ones_come_once() -> None:
    model = network()
    model[2].requires_grad_(False)
    tied = nn.Sequential(model, model)
    found = [name for group in no_decay(tied, 0.1) for name in names(group)]
    assert len(found) == 7
    assert not any(".2." in name for name in found)


@pytest.mark.parametrize("groups", [lambda m: no_decay(m, 0.1), lambda m: layerwise(m, 0.1, 0.5)])
def test_optimizers_take_the_groups(groups) -> None:
    model = nn.Linear(3, 2)
    optimizer = hasten.optim.make("adopt", groups(model))
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    assert optimizer.state_dict()["param_groups"][0]["param_names"]


def test_rates_fall_from_the_output_to_the_input() -> None:
    groups = layerwise(network(), 1.0, 0.5)
    rates = {name: group["lr"] for group in groups for name in names(group)}
    assert rates["4.weight"] == 1.0
    assert rates["3.bias"] == 0.5
    assert rates["0.weight"] == 0.5**4


def test_layers_may_be_given() -> None:
    model = network()
    groups = layerwise(model, 1.0, 0.1, layers=[model[0], model[2]])
    rates = {name: group["lr"] for group in groups for name in names(group)}
    assert (rates["0.weight"], rates["2.weight"], rates["4.weight"]) == (0.1, 1.0, 1.0)


def test_hidden_matrices_are_set_apart() -> None:
    hidden, others = hidden_matrices(network(), density=None)
    assert names(hidden) == ["2.weight"]
    assert set(names(others)) == {
        "0.weight",
        "1.weight",
        "1.bias",
        "2.bias",
        "3.weight",
        "3.bias",
        "4.weight",
        "4.bias",
    }
    assert others["density"] is None
    model = network()
    assert names(hidden_matrices(model, output=list(model.children())[2])[0]) == ["4.weight"]
    optimizer = Frugal(hidden_matrices(model, density=None))
    assert [group["density"] for group in optimizer.param_groups] == [0.25, None]


def test_a_weight_tied_to_the_embedding_is_no_hidden_matrix() -> None:
    model = nn.Sequential(nn.Embedding(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    assert [names(group) for group in hidden_matrices(model)] == [["0.weight", "1.bias", "2.weight", "2.bias"]]
    with pytest.raises(InputError, match="output"):
        hidden_matrices(model, output=nn.Linear(2, 2))


def test_wrong_arguments_are_named() -> None:
    model = network()
    with pytest.raises(InputError, match="weight_decay"):
        no_decay(model, -1.0)
    with pytest.raises(InputError, match="decay"):
        layerwise(model, 1.0, 1.5)
    with pytest.raises(InputError, match="layers"):
        layerwise(model, 1.0, 0.5, layers=[nn.Linear(2, 2)])
    with pytest.raises(InputError, match="requires gradients"):
        no_decay(nn.Linear(2, 2).requires_grad_(False), 0.1)
    with pytest.raises(InputError, match="Module"):
        no_decay([nn.Parameter(torch.ones(1))], 0.1)  # type: ignore[arg-type]
