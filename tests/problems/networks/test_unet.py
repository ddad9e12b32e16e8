"""The small U-Net and the problem that draws pictures with it."""

from __future__ import annotations

import os

import pytest
import torch

import hasten
from hasten.core.errors import InputError
from hasten.core.run import run
from hasten.numerics.noise import VPLinear
from hasten.problems.cifar10_diffusion import cifar10_denoiser
from hasten.problems.networks.unet import NoiseUNet, TinyUNet, levels, pictures, train_pictures

needs_data = pytest.mark.skipif(
    not os.environ.get("HASTEN_DATA"), reason="set HASTEN_DATA to the folder with the real data sets"
)


def net(kind: type[TinyUNet] = TinyUNet) -> TinyUNet:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = kind(1, (8, 16, 24), 16)
        for parameter in made.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)
    return made.eval()


def test_images_of_any_fitting_size_keep_their_shape() -> None:
    for rows, columns in ((8, 8), (4, 12)):
        assert net()(torch.randn(2, 1, rows, columns), torch.rand(2)).shape == (2, 1, rows, columns)
    assert TinyUNet(2, (8,))(torch.randn(2, 2, 5, 5), torch.rand(2)).shape == (2, 2, 5, 5)
    with pytest.raises(InputError, match="multiples of 4"):
        net()(torch.randn(2, 1, 6, 8), torch.rand(2))
    with pytest.raises(InputError, match="multiples of 8"):
        TinyUNet(widths=(12,))


def test_an_untrained_network_predicts_zero_and_its_blocks_can_be_hooked() -> None:
    made = TinyUNet(widths=(8, 16))
    seen = []
    for name, module in made.named_modules():
        if name in ("down.0", "down.1", "middle", "attn", "up.0", "up.1"):
            module.register_forward_hook(lambda module, args, output, name=name: seen.append((name, output.shape[-1])))
    assert not made(torch.randn(1, 3, 8, 8), torch.rand(1)).any()
    assert seen == [("down.0", 8), ("down.1", 4), ("middle", 4), ("attn", 4), ("up.0", 4), ("up.1", 8)]


def test_time_and_every_pixel_are_seen() -> None:
    made, x = net(), torch.randn(1, 1, 8, 8)
    base = made(x, torch.tensor([0.3]))
    assert not torch.allclose(made(x, torch.tensor([0.31])), base)
    moved = x.clone()
    moved[0, 0, 0, 0] += 1.0
    assert (made(moved, torch.tensor([0.3])) - base)[0, 0, 7, 7].abs() > 0


def test_the_noise_at_high_noise_is_nearly_the_state() -> None:
    made, x = net(NoiseUNet), torch.randn(3, 1, 8, 8)
    t = torch.full((3,), 1.0)
    alpha, sigma = levels(t)
    assert float(alpha[0]) == pytest.approx(VPLinear().alpha(1.0))
    inner = (made(x, t) - sigma * x) / alpha
    assert torch.allclose(inner, TinyUNet.forward(made, x, t), atol=1e-3)
    assert torch.allclose(made(x, t), x, atol=0.1)


@needs_data
def test_training_lowers_the_loss() -> None:
    data = pictures()
    assert data.shape == (10000, 3, 16, 16)
    assert data.min() >= -1.0
    assert data.max() <= 1.0
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = NoiseUNet(widths=(8, 16))
    losses: list[float] = []
    train_pictures(made, lambda step, steps, loss: losses.append(loss), steps=40, batch=16)
    assert sum(losses[-10:]) < 0.95 * sum(losses[:10])


def test_the_problem_measures_the_distance_to_the_exact_solution_and_shows_pictures() -> None:
    problem = hasten.problem("cifar10-diffusion", batch=2)
    instance = problem.build(0)
    assert instance.metric(instance.noise) > 0.1
    trace = run(hasten.get("diffusion.ddim").make(), problem, budget="16calls", picture=True)
    assert trace.metric[-1] < trace.metric[0]
    assert trace.picture
    assert instance.picture(trace.answer).shape == (16, 33, 3)
    assert cifar10_denoiser().cond is None
