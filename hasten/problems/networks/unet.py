"""A small U-Net for images, and the one that draws small natural pictures."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.numerics.noise import VPLinear
from hasten.problems.data import load
from hasten.problems.networks.dit import frequencies
from hasten.problems.networks.recipe import Report, fit, recipe


class ResBlock(nn.Module):
    """Two convolutions with the time between them, beside a skip."""

    def __init__(self, inputs: int, outputs: int, embedding: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = nn.GroupNorm(8, inputs), nn.Conv2d(inputs, outputs, 3, padding=1)
        self.time = nn.Linear(embedding, outputs)
        self.norm2, self.conv2 = nn.GroupNorm(8, outputs), silent(nn.Conv2d(outputs, outputs, 3, padding=1))
        self.skip = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x))) + self.time(emb)[:, :, None, None]
        return self.skip(x) + self.conv2(F.silu(self.norm2(h)))


class AttentionBlock(nn.Module):
    """Self-attention over all pixels, beside a skip."""

    def __init__(self, width: int, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(8, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.out = silent(nn.Conv2d(width, width, 1))

    def forward(self, x: Tensor) -> Tensor:
        batch, width, rows, columns = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, 3, self.heads, width // self.heads, rows * columns)
        query, key, value = qkv.transpose(-1, -2).unbind(1)
        attended = F.scaled_dot_product_attention(query, key, value)
        return x + self.out(attended.transpose(-1, -2).reshape(x.shape))


class TinyUNet(nn.Module):
    """U-Net with skips: noisy images (batch, channels, size, size) and times in [0, 1] to images of that shape.

    Each level has one block on the way down and one on the way up; the deepest has attention. Sub-modules:
    `stem`, `time`, `down` (blocks, outermost first), `shrink`, `middle`, `attn`, `up` (blocks, innermost first),
    `grow`, `final`.

    Args:
        channels: of the images.
        widths: channels of the levels, multiples of 8, each level at half the size of the one before.
        embedding: width of the time's embedding, even.
    """

    def __init__(self, channels: int = 3, widths: tuple[int, ...] = (32, 64, 96), embedding: int = 64) -> None:
        super().__init__()
        if not widths or any(width % 8 for width in widths) or embedding % 2:
            raise InputError(f"widths must be multiples of 8 and embedding even, got {widths} and {embedding}")
        self.embedding = embedding
        self.stem = nn.Conv2d(channels, widths[0], 3, padding=1)
        self.time = nn.Sequential(nn.Linear(embedding, embedding), nn.SiLU(), nn.Linear(embedding, embedding))
        before = (widths[0], *widths[:-1])
        self.down = nn.ModuleList(ResBlock(i, o, embedding) for i, o in zip(before, widths))
        self.shrink = nn.ModuleList(nn.Conv2d(width, width, 3, stride=2, padding=1) for width in widths[:-1])
        self.middle = ResBlock(widths[-1], widths[-1], embedding)
        self.attn = AttentionBlock(widths[-1])
        self.up = nn.ModuleList(ResBlock(2 * i, o, embedding) for i, o in zip(widths[::-1], before[::-1]))
        self.grow = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for width in widths[-2::-1])
        self.final = nn.Sequential(
            nn.GroupNorm(8, widths[0]), nn.SiLU(), silent(nn.Conv2d(widths[0], channels, 3, padding=1))
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        step = 2 ** len(self.shrink)
        if x.shape[-1] % step or x.shape[-2] % step:
            raise InputError(f"height and width must be multiples of {step}, got {tuple(x.shape)}")
        emb = F.silu(self.time(frequencies(t, self.embedding)))
        h, skips = self.stem(x), []
        for level, block in enumerate(self.down):
            h = block(h, emb)
            skips.append(h)
            if level < len(self.shrink):
                h = self.shrink[level](h)
        h = self.attn(self.middle(h, emb))
        for level, block in enumerate(self.up):
            h = block(torch.cat([h, skips.pop()], dim=1), emb)
            if level < len(self.grow):
                h = self.grow[level](F.interpolate(h, scale_factor=2.0, mode="nearest"))
        return self.final(h)


class NoiseUNet(TinyUNet):
    """The U-Net as a prediction of the noise under `VPLinear`: `eps = sigma(t) x + alpha(t) unet(x, t)`.

    What is left to the U-Net is the v-prediction. An error of it moves the clean data that follow by as much at most,
    whereas an error of a bare noise prediction is multiplied by sigma/alpha, 150 at t = 1.
    """

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = levels(t)
        return sigma * x + alpha * super().forward(x, t)


def levels(t: Tensor) -> tuple[Tensor, Tensor]:
    """Signal and noise level of `VPLinear` at times (batch,), each (batch, 1, 1, 1) in their type."""
    schedule = VPLinear()
    alpha, sigma = (level(t.double()).to(t).view(-1, 1, 1, 1) for level in (schedule.alpha, schedule.sigma))
    return alpha, sigma


def silent(layer: nn.Conv2d) -> nn.Conv2d:
    """The layer with all parameters zero."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def pictures() -> Tensor:
    """The training images of the CIFAR-10 subset, averaged over 2x2 pixels: (10000, 3, 16, 16) in [-1, 1]."""
    pixels = torch.from_numpy(load("cifar10")["x_train"].copy()).permute(0, 3, 1, 2).float()
    return F.avg_pool2d(pixels, 2) / 127.5 - 1.0


@recipe("cifar10-diffusion", NoiseUNet, summary="diffusion on 16x16 CIFAR-10: U-Net of three levels, 32 to 96 channels")
def train_pictures(model: nn.Module, report: Report, steps: int = 1500, batch: int = 48) -> float:
    """Mean square error of the noise over alpha^2, which is that of v, at times spread evenly over a batch."""
    data, schedule = pictures(), VPLinear()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (batch,), generator=generator)
        clean, eps = data[index], torch.randn(batch, *data.shape[1:], generator=generator)
        mirrored = torch.rand(batch, generator=generator) < 0.5
        clean = torch.where(mirrored[:, None, None, None], clean.flip(-1), clean)
        u = (torch.rand(1, generator=generator) + torch.arange(batch) / batch).remainder(1.0)
        t = schedule.t_min + (schedule.T - schedule.t_min) * u
        alpha, sigma = levels(t)
        return ((model(alpha * clean + sigma * eps, t) - eps) / alpha).square().mean()

    return fit(model, loss, report, steps=steps, lr=2e-3, ema=0.99)
