"""A small next-scale autoregressive model of images, from one token to a whole map, and the one that draws digits."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.errors import InputError
from hasten.problems.networks.dit import images
from hasten.problems.networks.recipe import Report, fit, recipe


class Memory:
    """Keys and values of the scales that a layer has seen, each (batch, heads, tokens, width per head)."""

    def __init__(self) -> None:
        self.seen: tuple[Tensor, Tensor] | None = None

    def extend(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values, the new ones last."""
        if self.seen is not None:
            key, value = torch.cat([self.seen[0], key], dim=2), torch.cat([self.seen[1], value], dim=2)
        self.seen = key, value
        return self.seen


class Attention(nn.Module):
    """Norm and attention of a scale's tokens to all tokens of this scale and of those in memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Memory | None = None, mask: Tensor | None = None) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        if memory is not None:
            key, value = memory.extend(key, value)
        attended = F.scaled_dot_product_attention(query, key, value, mask)
        return self.out(attended.transpose(1, 2).reshape(batch, tokens, width))


class VARBlock(nn.Module):
    """Attention and a feed-forward layer, each with its norm inside and a residual around it."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, memory: Memory | None = None, mask: Tensor | None = None) -> Tensor:
        x = x + self.attn(x, memory, mask)
        return x + self.mlp(x)


class ResidualQuantiser(nn.Module):
    """Feature maps as codes on growing scales: each scale codes what the smaller ones, enlarged, leave over.

    Args:
        scales: sides of the maps, increasing.
        features: of a position.
        codes: entries of the codebook, which all scales share.
    """

    codebook: Tensor

    def __init__(self, scales: Sequence[int], features: int, codes: int) -> None:
        super().__init__()
        self.scales = tuple(scales)
        self.register_buffer("codebook", torch.randn(codes, features))

    def enlarge(self, index: int, codes: Tensor) -> Tensor:
        """What codes (batch, tokens) of scale `index` add to the largest map, (batch, features, side, side)."""
        side, full = self.scales[index], self.scales[-1]
        values = self.codebook[codes].transpose(1, 2).unflatten(2, (side, side))
        return F.interpolate(values, (full, full), mode="bilinear", align_corners=False)

    def reduce(self, index: int, maps: Tensor) -> Tensor:
        """Means of the largest map over the positions of scale `index`, as tokens (batch, tokens, features)."""
        side = self.scales[index]
        return F.interpolate(maps, (side, side), mode="area").flatten(2).transpose(1, 2)

    def nearest(self, tokens: Tensor) -> Tensor:
        """Entries of the codebook that are nearest to the tokens."""
        return torch.cdist(tokens, self.codebook.expand(len(tokens), -1, -1)).argmin(2)

    def encode(self, maps: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Codes of every scale, and the map as it is known before each scale."""
        codes, known, so_far = [], [], torch.zeros_like(maps)
        for index in range(len(self.scales)):
            known.append(so_far)
            codes.append(self.nearest(self.reduce(index, maps - so_far)))
            so_far = so_far + self.enlarge(index, codes[-1])
        return codes, known

    def learn(self, maps: Tensor, rounds: int = 10) -> None:
        """Fit the codebook to maps by Lloyd's rule from shrunk members, every scale weighing the same."""
        generator = torch.Generator().manual_seed(0)
        points = maps.transpose(0, 1).flatten(1).mT
        drawn = points[torch.randint(len(points), (len(self.codebook),), generator=generator)]
        self.codebook.copy_(drawn * torch.rand(len(drawn), 1, generator=generator))
        for _ in range(rounds):
            codes, known = self.encode(maps)
            sums, counts = torch.zeros_like(self.codebook), torch.zeros(len(self.codebook), 1).to(maps)
            for index, (owner, so_far) in enumerate(zip(codes, known)):
                weight = 1.0 / owner.shape[1]
                sums.index_add_(0, owner.flatten(), weight * self.reduce(index, maps - so_far).flatten(0, 1))
                counts += weight * owner.flatten().bincount(minlength=len(counts)).unsqueeze(1)
            self.codebook.copy_(torch.where(counts > 0, sums / counts.clamp(min=1e-12), self.codebook))


class TinyVAR(nn.Module):
    """Visual autoregressive model: images are drawn scale by scale, all tokens of a scale at once.

    Args:
        size: height and width of the images, `patch` times the last scale.
        channels: of the images.
        patch: side of the squares that become tokens.
        scales: sides of the token maps, increasing from 1.
        codes: entries of the codebook.
        width: of the tokens, a multiple of `heads`.
        depth: number of blocks.
        heads: of the attention.
        classes: number of classes.

    Source of the design: Tian et al. (2024), arXiv 2404.02905.
    """

    def __init__(
        self,
        size: int = 16,
        channels: int = 1,
        patch: int = 1,
        scales: Sequence[int] = (1, 2, 4, 8, 16),
        codes: int = 16,
        width: int = 64,
        depth: int = 4,
        heads: int = 4,
        classes: int = 10,
    ) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"width must be a multiple of heads, got width={width}, heads={heads}")
        if size != patch * scales[-1] or scales[0] != 1 or any(b <= a for a, b in pairwise(scales)):
            raise InputError(
                f"scales must grow from 1 to size/patch = {size}/{patch}, got {', '.join(map(str, scales))}"
            )
        self.patch, self.channels, self.classes = patch, channels, classes
        features = channels * patch**2
        self.quantiser = ResidualQuantiser(scales, features, codes)
        self.embed = nn.Linear(features, width)
        self.positions = nn.ParameterList(nn.Parameter(0.02 * torch.randn(side**2, width)) for side in scales)
        self.label = nn.Embedding(classes, width)
        self.blocks = nn.ModuleList(VARBlock(width, heads) for _ in range(depth))
        self.final = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, codes))
        scale_of = torch.repeat_interleave(torch.tensor([side**2 for side in scales]))
        self.register_buffer("mask", scale_of[:, None] >= scale_of, persistent=False)

    def tokens(self, index: int, known: Tensor, labels: Tensor) -> Tensor:
        """Inputs for scale `index` from the map as it is known, (batch, side * side, width)."""
        return self.embed(self.quantiser.reduce(index, known)) + self.positions[index] + self.label(labels)[:, None]

    def forward(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of all codes of images (batch, tokens, codes), each given the smaller scales, and the codes."""
        codes, known = self.quantiser.encode(F.pixel_unshuffle(images, self.patch))
        return self.logits(known, labels), torch.cat(codes, dim=1)

    def logits(self, known: Sequence[Tensor], labels: Tensor) -> Tensor:
        """Logits of the codes of all scales from the map as it is known before each of them."""
        x = torch.cat([self.tokens(index, maps, labels) for index, maps in enumerate(known)], dim=1)
        for block in self.blocks:
            x = block(x, None, self.mask)
        return self.final(x)

    @torch.no_grad()
    def generate(self, labels: Tensor, generator: torch.Generator | None = None, *, temperature: float = 1.0) -> Tensor:
        """Images of these classes, (batch, channels, size, size).

        Args:
            labels: classes (batch,), int64.
            generator: source of the draws; torch's global one if not given. Equal generators draw the same numbers
                for each token whatever the logits are.
            temperature: of the draws; 0 takes the most likely codes.
        """
        check.nonnegative("temperature", temperature)
        full = self.quantiser.scales[-1]
        known = self.embed.weight.new_zeros(len(labels), self.channels * self.patch**2, full, full)
        memories = [Memory() for _ in self.blocks]
        for index in range(len(self.quantiser.scales)):
            x = self.tokens(index, known, labels)
            for block, memory in zip(self.blocks, memories):
                x = block(x, memory)
            logits = self.final(x)
            noise = torch.empty(logits.shape, dtype=logits.dtype).exponential_(generator=generator).log()
            codes = (logits - temperature * noise.to(logits.device)).argmax(2)
            known = known + self.quantiser.enlarge(index, codes)
        return F.pixel_shuffle(known, self.patch)


def large_digits() -> tuple[Tensor, Tensor]:
    """The digits enlarged to 16x16, (1797, 1, 16, 16) in [-1, 1], and their labels."""
    small, labels = images()
    return F.interpolate(small, (16, 16), mode="bilinear", align_corners=False), labels


@recipe("digits-var", TinyVAR, summary="class-conditional next-scale model of 16x16 digits: sides 1 to 16, width 64")
def train_digits(model: nn.Module, report: Report, steps: int = 400, batch: int = 16) -> float:
    """Codebook by Lloyd's rule, then cross entropy of the codes of all scales."""
    assert isinstance(model, TinyVAR)
    data, labels = large_digits()
    maps = F.pixel_unshuffle(data, model.patch)
    model.quantiser.learn(maps)
    codes, known = model.quantiser.encode(maps)
    goals = torch.cat(codes, dim=1)

    def loss(_: nn.Module, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (batch,), generator=generator)
        logits = model.logits([so_far[index] for so_far in known], labels[index])
        return F.cross_entropy(logits.flatten(0, 1), goals[index].flatten())

    return fit(model, loss, report, steps=steps)
