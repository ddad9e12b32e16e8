"""A small diffusion transformer for images, and the one that draws handwritten digits."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.problems.digits import digits
from hasten.problems.networks.recipe import Report, fit, recipe


class Attention(nn.Module):
    """Self-attention of several heads over tokens (batch, tokens, width)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(x).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value)
        return self.out(attended.transpose(1, 2).reshape(batch, tokens, width))


class DiTBlock(nn.Module):
    """Attention and a feed-forward layer, modulated and gated by the condition; the gates begin at zero."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, elementwise_affine=False)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))
        self.modulation = zero(nn.Linear(width, 6 * width))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(cond).unsqueeze(1).chunk(6, dim=-1)
        x = x + gate1 * self.attn(self.norm1(x) * (1.0 + scale1) + shift1)
        return x + gate2 * self.mlp(self.norm2(x) * (1.0 + scale2) + shift2)


class TinyDiT(nn.Module):
    """Diffusion transformer: noisy images (batch, channels, size, size) and times in [0, 1] to images of that shape.

    Args:
        size: height and width of the images, a multiple of `patch`.
        channels: of the images.
        patch: side of the squares that become tokens.
        width: of the tokens, a multiple of `heads`.
        depth: number of blocks.
        heads: of the attention.
        classes: number of classes; the label `classes` stands for none.

    Source of the design: Peebles & Xie (2022), arXiv 2212.09748.
    """

    def __init__(
        self,
        size: int = 8,
        channels: int = 1,
        patch: int = 2,
        width: int = 64,
        depth: int = 6,
        heads: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if size % patch or width % heads or width % 2:
            raise InputError(
                f"size must be a multiple of patch and width an even multiple of heads, got size={size}, "
                f"patch={patch}, width={width}, heads={heads}"
            )
        self.classes, self.patch = classes, patch
        self.embed = nn.Conv2d(channels, width, patch, stride=patch)
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // patch) ** 2, width))
        self.time = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.label = nn.Embedding(classes + 1, width)
        self.blocks = nn.ModuleList(DiTBlock(width, heads) for _ in range(depth))
        self.final = FinalLayer(width, patch * patch * channels)

    def forward(self, x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        tokens = self.embed(x)
        rows, columns = tokens.shape[-2:]
        h = tokens.flatten(2).transpose(1, 2) + self.position
        labels = t.new_full(t.shape, self.classes, dtype=torch.int64) if cond is None else cond.expand(len(x))
        c = F.silu(self.time(frequencies(t, h.shape[-1])) + self.label(labels))
        for block in self.blocks:
            h = block(h, c)
        h = self.final(h, c)
        h = h.view(len(x), rows, columns, -1, self.patch, self.patch)
        return h.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


class FinalLayer(nn.Module):
    """Modulated norm and the projection of tokens to patches, which begins at zero."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.modulation = zero(nn.Linear(width, 2 * width))
        self.out = zero(nn.Linear(width, outputs))

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        shift, scale = self.modulation(cond).unsqueeze(1).chunk(2, dim=-1)
        return self.out(self.norm(x) * (1.0 + scale) + shift)


def zero(layer: nn.Linear) -> nn.Linear:
    """The layer with all parameters zero."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def frequencies(t: Tensor, width: int, highest: float = 1000.0) -> Tensor:
    """Cosines and sines of times in [0, 1], shape (batch, width), at frequencies from `highest` down to 0.1."""
    rates = highest * torch.exp(-math.log(1e4) * torch.arange(width // 2, device=t.device) / (width // 2))
    angles = t[:, None] * rates.to(t)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def images() -> tuple[Tensor, Tensor]:
    """The digits as images (1797, 1, 8, 8) in [-1, 1], and their labels."""
    pixels, labels = digits()
    return 2.0 * pixels.view(-1, 1, 8, 8) - 1.0, labels


@recipe("digits-diffusion", TinyDiT, summary="class-conditional flow on 8x8 digits: transformer of 6 blocks, width 64")
def train_digits(model: nn.Module, report: Report, steps: int = 3000, batch: int = 128) -> float:
    """Flow matching: mean square error of the velocity `eps - x_0`, logit-normal times, 10 % of labels dropped."""
    data, labels = images()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (batch,), generator=generator)
        clean, eps = data[index], torch.randn(batch, 1, 8, 8, generator=generator)
        t = torch.randn(batch, generator=generator).sigmoid()
        at = t.view(-1, 1, 1, 1)
        dropped = torch.rand(batch, generator=generator) < 0.1
        velocity = model((1.0 - at) * clean + at * eps, t, labels[index].masked_fill(dropped, 10))
        return F.mse_loss(velocity, eps - clean)

    return fit(model, loss, report, steps=steps)
