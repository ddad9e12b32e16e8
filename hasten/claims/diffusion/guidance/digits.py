"""What the claims about guidance of the digits' model share: the model, classifiers of its images, clean samples."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.diffusion.base import sample
from hasten.diffusion.samplers.ddim import DDIM
from hasten.numerics.denoiser import Denoiser
from hasten.problems.digits import digits, mlp, small_cnn
from hasten.problems.digits_diffusion import digits_denoiser

TRAINING = 1297
"""Images that classifiers are trained on; the other 500 test them."""
UNIFORM = DDIM(grid="uniform")


@cache
def model() -> Denoiser:
    """The trained flow on digits; without labels it is unconditional."""
    return digits_denoiser()


@cache
def images() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Training images and labels, test images and labels; images (n, 1, 8, 8) in [-1, 1]."""
    pixels, labels = digits()
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    pixels, labels = 2.0 * pixels[order].view(-1, 1, 8, 8) - 1.0, labels[order]
    return pixels[:TRAINING], labels[:TRAINING], pixels[TRAINING:], labels[TRAINING:]


@cache
def classifier(seed: int) -> nn.Module:
    """A small convolutional classifier of clean digits, about 98 % right on test images."""
    return _trained(lambda: nn.Sequential(nn.Flatten(), small_cnn(8)), seed, 400)


@cache
def judge() -> nn.Module:
    """Another classifier, of another make."""
    return _trained(lambda: nn.Sequential(nn.Flatten(), mlp(64, 128, 64, 10)), 1000, 600)


def _trained(build: object, seed: int, steps: int) -> nn.Module:
    x, y, _, _ = images()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net: nn.Module = build()  # type: ignore[operator]
        optimizer = torch.optim.Adam(net.parameters(), 3e-3)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.randint(len(x), (128,))
            optimizer.zero_grad()
            F.cross_entropy(net(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
    return net.eval().requires_grad_(False)


def accuracy(net: nn.Module, x: Tensor, labels: Tensor) -> float:
    """Share of images that a classifier gives these labels."""
    with torch.no_grad():
        return float((net(x).argmax(1) == labels).double().mean())


@cache
def clean_samples(count: int, seed: int) -> Tensor:
    """Images drawn from the unconditional model in 20 steps."""
    generator = torch.Generator().manual_seed(seed)
    return sample(model(), (count, 1, 8, 8), UNIFORM, 20, generator=generator)
