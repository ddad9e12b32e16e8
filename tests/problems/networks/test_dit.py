"""The small diffusion transformer and the problem that draws digits with it."""

from __future__ import annotations

import pytest
import torch

import hasten
from hasten.core.errors import InputError
from hasten.problems.digits_diffusion import digits_denoiser
from hasten.problems.networks import network
from hasten.problems.networks.dit import TinyDiT, frequencies, images, train_digits


def test_an_untrained_network_predicts_zero_for_every_shape() -> None:
    net = TinyDiT(size=12, channels=3, patch=3, width=16, depth=2, heads=2, classes=4)
    x = torch.randn(5, 3, 12, 12)
    assert torch.equal(net(x, torch.rand(5), torch.arange(5)), torch.zeros_like(x))


def test_no_condition_is_the_label_beyond_the_classes() -> None:
    net = network("digits-diffusion")
    x, t = torch.randn(4, 1, 8, 8), torch.rand(4)
    assert torch.equal(net(x, t), net(x, t, torch.full((4,), 10)))
    assert not torch.allclose(net(x, t), net(x, t, torch.arange(4)))


def test_patches_return_to_their_place() -> None:
    net = network("digits-diffusion")
    x, t = torch.randn(1, 1, 8, 8), torch.full((1,), 0.5)
    patches = []
    net.final.register_forward_hook(lambda module, args, output: patches.append(output))
    image = net(x, t)
    assert torch.equal(image[0, 0, 2:4, 6:8].flatten(), patches[0][0, 1 * 4 + 3])


def test_samples_do_not_depend_on_their_batch() -> None:
    net = network("digits-diffusion")
    x, t, labels = torch.randn(6, 1, 8, 8), torch.rand(6), torch.arange(6)
    assert torch.allclose(net(x, t, labels)[2:4], net(x[2:4], t[2:4], labels[2:4]), atol=1e-6)


def test_times_are_told_apart() -> None:
    features = frequencies(torch.linspace(0, 1, 50), 64)
    distances = torch.cdist(features, features) + 10 * torch.eye(50)
    assert distances.min() > 0.1


def test_widths_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match="patch=3"):
        TinyDiT(size=8, patch=3)


def test_training_lowers_the_loss() -> None:
    losses: list[float] = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = TinyDiT(width=16, depth=1)
    train_digits(net, lambda step, steps, loss: losses.append(loss), steps=40, batch=32)
    assert sum(losses[-10:]) < 0.9 * sum(losses[:10])
    data, labels = images()
    assert data.shape == (1797, 1, 8, 8)
    assert data.min() == -1
    assert data.max() == 1
    assert len(labels) == 1797


def test_the_problem_measures_the_distance_to_the_exact_solution() -> None:
    made = hasten.problem("digits-diffusion", batch=4)
    instance = made.build(0)
    assert instance.offers() >= {"condition"}
    exact = digits_denoiser()
    exact.fn.double()
    solved = exact.given(instance.denoiser.cond).solve(instance.noise.double(), steps=100)
    assert instance.metric(solved) < 1e-4
    assert instance.metric(instance.noise) > 0.1
