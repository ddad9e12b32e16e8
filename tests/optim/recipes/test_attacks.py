"""Attacks: where they end, what they increase, and what they leave alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.optim import fgsm, fgsm_rs, pgd
from hasten.optim.recipes.attacks import accuracy, injected, undisturbed


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 3))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(16, 6, generator=generator), torch.randint(0, 3, (16,), generator=generator)


ATTACKS = pytest.mark.parametrize(
    "attack", [fgsm, fgsm_rs, pgd, lambda *args, **options: pgd(*args, steps=20, start=False, **options)]
)


@ATTACKS
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 100), eps=st.floats(0, 0.5))
def test_stays_within_eps_and_the_box(attack: Any, seed: int, eps: float):
    model, (inputs, labels) = network(seed).eval(), batch(seed)
    found = attack(model, inputs, labels, eps)
    assert (found - inputs).abs().max() <= eps + 1e-6
    assert found.min() >= 0
    assert found.max() <= 1
    assert not found.requires_grad


def test_fgsm_is_the_closed_form():
    """For a linear model of two classes the gradient's sign is that of the difference of the weights."""
    model = nn.Linear(4, 2)
    inputs, labels = torch.full((3, 4), 0.5), torch.tensor([0, 1, 0])
    sign = (model.weight[1] - model.weight[0]).detach().sign()
    expected = inputs + 0.1 * torch.stack([sign if label == 0 else -sign for label in labels])
    torch.testing.assert_close(fgsm(model, inputs, labels, 0.1), expected)


def test_pgd_is_stronger_than_one_step():
    model, (inputs, labels) = network().eval(), batch()
    model.requires_grad_(False)

    def after(x: Tensor) -> float:
        return float(F.cross_entropy(model(x), labels))

    clean, one = after(inputs), after(fgsm(model, inputs, labels, 0.3))
    many = after(pgd(model, inputs, labels, 0.3, 0.03, 40, start=False))
    assert clean < one <= many + 1e-6


def test_random_start_is_uniform_and_repeatable():
    model, (inputs, labels) = network().eval(), batch()
    first, second = (
        fgsm_rs(model, inputs, labels, 0.2, 1e-9, box=None, generator=torch.Generator().manual_seed(5)) for _ in "ab"
    )
    assert torch.equal(first, second)
    moved = ((first - inputs) / 0.2).flatten()
    assert moved.abs().max() <= 1.0 + 1e-6
    assert moved.std() == pytest.approx(3**-0.5, rel=0.2)


@ATTACKS
def test_gradients_statistics_and_mode_are_left_alone(attack: Any):
    model, (inputs, labels) = network(), batch()
    kept = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        attack(model, inputs, labels, 0.1)
    assert model.training
    assert all(param.grad is None for param in model.parameters())
    assert all(torch.equal(value, kept[name]) for name, value in model.state_dict().items())


def test_graphs_outlive_an_attack():
    """A loss that was computed before can still be differentiated, batch statistics included."""
    model, (inputs, labels) = network(), batch()
    loss = F.cross_entropy(model(inputs), labels)
    pgd(model, inputs, labels, 0.1)
    (loss + F.cross_entropy(model(inputs), labels)).backward()
    assert all(param.grad is not None for param in model.parameters())
    assert model[1].num_batches_tracked == 2


def test_injected_inputs_are_seen_and_taken_out_again():
    model, (inputs, _) = network().eval(), batch()
    with injected(model, torch.zeros_like):
        assert torch.equal(model(inputs), model(torch.ones_like(inputs)))
    assert not torch.equal(model(inputs), model(torch.zeros_like(inputs)))


def test_undisturbed_even_by_an_error():
    model, (inputs, _) = network(), batch()
    mean = model[1].running_mean

    def fail() -> None:
        with undisturbed(model):
            model(inputs)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert model[1].running_mean is mean
    assert not mean.any()


def test_accuracy_counts_in_evaluation_mode():
    model, (inputs, labels) = network(), batch()
    expected = float((network().eval()(inputs).argmax(1) == labels).float().mean())
    assert accuracy(model, inputs, labels, batch_size=5) == pytest.approx(expected)
    assert model.training


@pytest.mark.parametrize(
    ("options", "message"),
    [({"eps": -0.1}, "eps"), ({"alpha": -1.0}, "alpha"), ({"steps": 0}, "steps"), ({"box": (1, 0)}, "box")],
)
def test_bad_arguments_are_named(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        pgd(network(), *batch(), **{"eps": 0.1, **options})


def test_integer_images_are_refused():
    with pytest.raises(InputError, match="floating point"):
        fgsm(network(), torch.ones(2, 6, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), 0.1)
