"""ConvergeSmooth, weight centralisation, single-step adversarial training, and adversarial fine-tuning."""

from __future__ import annotations

import io
import itertools
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.optim import (
    ConvergeSmooth,
    FastAdversarialTraining,
    MeZO,
    WeightCentralization,
    adversarial_finetune,
    pgd,
)


def number(value: float) -> Tensor:
    return torch.tensor(value, requires_grad=True)


def epochs(smooth: ConvergeSmooth, *means: float) -> ConvergeSmooth:
    for mean in means:
        smooth.loss(number(0.0), number(mean))
        smooth.end_epoch()
    return smooth


@pytest.mark.parametrize(
    ("clean", "sign"), [(1.0, 0.0), (1.029, 0.0), (0.971, 0.0), (1.031, 1.0), (2.0, 1.0), (0.969, -1.0), (0.5, -1.0)]
)
def test_pulls_the_loss_back_outside_the_gap(clean: float, sign: float):
    smooth = epochs(ConvergeSmooth(weight=0.5), 1.0)
    adv, other = number(3.0), number(clean)
    smooth.loss(adv, other).backward()
    assert adv.grad == 1.0
    assert (0.0 if other.grad is None else float(other.grad)) == sign * 0.5


@pytest.mark.parametrize(
    ("means", "gap"), [((1.0,), 0.015), ((1.0, 1.02), 0.02), ((1.0, 1.5), 0.03), ((1.0, 0.5), 0.015)]
)
def test_gap_follows_the_last_change_between_its_bounds(means: tuple[float, ...], gap: float):
    assert epochs(ConvergeSmooth(gamma_max=0.03, ratio=2.0), *means).gap == pytest.approx(gap)


def test_is_inactive_in_the_first_epoch_and_near_milestones():
    smooth = ConvergeSmooth(milestones=(4,), stride=1)
    active = []
    for _ in range(8):
        active.append(smooth.active)
        epochs(smooth, 1.0)
    assert active == [False, True, True, False, False, False, True, True]
    assert float(ConvergeSmooth().loss(number(3.0), number(100.0)).detach()) == 3.0


def test_means_are_of_the_clean_losses_and_empty_epochs_do_not_count():
    smooth = ConvergeSmooth()
    for clean in (1.0, 2.0, 6.0):
        smooth.loss(number(9.0), number(clean))
    smooth.end_epoch()
    smooth.end_epoch()
    assert smooth.means == [3.0]
    assert smooth.epoch == 1
    again = ConvergeSmooth()
    again.load_state_dict(smooth.state_dict())
    assert again.state_dict() == smooth.state_dict()


@pytest.mark.parametrize("option", ["gamma_max", "ratio", "weight", "stride"])
def test_bad_arguments_are_named(option: str):
    with pytest.raises(InputError, match=option):
        ConvergeSmooth(**{option: -1})


def test_weights_are_pulled_to_the_mean_of_past_epochs():
    """SGD on the penalty alone: w - lr * 2 coef (w - mean)."""
    x = nn.Parameter(torch.tensor([1.0, 2.0]))
    optimizer = torch.optim.SGD([x], lr=0.1)
    pull = WeightCentralization(optimizer, coef=0.5)
    x.grad = torch.zeros(2)
    optimizer.step()
    assert torch.equal(x.detach(), torch.tensor([1.0, 2.0]))
    pull.end_epoch()
    x.data.copy_(torch.tensor([3.0, 2.0]))
    pull.end_epoch()
    x.grad = torch.zeros(2)
    optimizer.step()
    torch.testing.assert_close(x.detach(), torch.tensor([3.0 - 0.1 * (3.0 - 2.0), 2.0]))
    again = WeightCentralization(torch.optim.SGD([x], lr=0.1), coef=0.5)
    again.load_state_dict(pull.state_dict())
    assert torch.equal(again.state[x]["center"], torch.tensor([2.0, 2.0]))


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3))


def batch(seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.rand(48, 6, generator=generator)
    return inputs, inputs[:, :3].argmax(1)


def training(model: nn.Module, **options: Any) -> FastAdversarialTraining:
    return FastAdversarialTraining(torch.optim.SGD(model.parameters(), lr=0.1), model, **{"eps": 0.1, **options})


def test_a_step_is_that_of_fgsm_rs_by_hand():
    model, twin = network(), network()
    inputs, labels = batch()
    torch.manual_seed(3)
    training(model, alpha=0.05).step(lambda: F.cross_entropy(model(inputs), labels))
    torch.manual_seed(3)
    low, high = (inputs - 0.1).clamp(min=0), (inputs + 0.1).clamp(max=1)
    start = (inputs + 0.1 * (2 * torch.rand_like(inputs) - 1)).clamp(low, high).requires_grad_()
    (grad,) = torch.autograd.grad(F.cross_entropy(network()(start), labels), start)
    attacked = (start.detach() + 0.05 * grad.sign()).clamp(low, high)
    F.cross_entropy(twin(attacked), labels).backward()
    torch.optim.SGD(twin.parameters(), lr=0.1).step()
    for ours, theirs in zip(model.state_dict().values(), twin.state_dict().values()):
        torch.testing.assert_close(ours, theirs)


def test_the_smoother_sees_the_clean_loss_and_is_saved():
    model, smooth = network(), ConvergeSmooth()
    inputs, labels = batch()
    clean = float(F.cross_entropy(network()(inputs), labels).detach())
    optimizer = training(model, smooth=smooth)
    optimizer.step(lambda: F.cross_entropy(model(inputs), labels))
    smooth.end_epoch()
    assert smooth.means == [pytest.approx(clean)]
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    again = training(network(), smooth=ConvergeSmooth())
    again.load_state_dict(torch.load(file, weights_only=True))
    assert again.smooth is not None
    assert again.smooth.state_dict() == smooth.state_dict()
    optimizer.step(lambda: F.cross_entropy(model(inputs), labels))


def test_bad_calls_are_named():
    model = network()
    inputs, labels = batch()
    with pytest.raises(InputError, match="needs a closure"):
        training(model).step()
    with pytest.raises(InputError, match="did not call the model"):
        training(model).step(lambda: F.cross_entropy(network()(inputs), labels))
    with pytest.raises(InputError, match="evaluates its own"):
        FastAdversarialTraining(MeZO(model.parameters()), model, 0.1)


def test_fine_tuning_makes_robust_and_counts_its_steps():
    model = network()
    inputs, labels = batch()
    attack = partial(pgd, eps=0.1, steps=5)

    def robust_loss() -> float:
        model.eval()
        return float(F.cross_entropy(model(attack(model, inputs, labels)), labels).detach())

    before = robust_loss()
    steps = adversarial_finetune(model, itertools.repeat(batch()), attack, epochs=10, lr=0.3, steps_per_epoch=4)
    assert steps == 40
    assert model.training
    assert robust_loss() < 0.8 * before


def test_fine_tuning_with_too_few_batches_is_named():
    with pytest.raises(InputError, match="ended after 3 of 10 steps"):
        adversarial_finetune(network(), [batch()] * 3, lambda model, x, y: x, epochs=2, steps_per_epoch=5)
    with pytest.raises(InputError, match="epochs"):
        adversarial_finetune(network(), [batch()], lambda model, x, y: x, epochs=0, steps_per_epoch=5)
