"""A small autoregressive flow for images whose blocks are causal transformers, and the one that draws digits."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.problems.networks.dit import images, zero
from hasten.problems.networks.recipe import Report, fit, recipe


class Memory(NamedTuple):
    """Keys and values of the tokens that a layer has seen, each (batch, heads, tokens, width per head)."""

    key: Tensor
    value: Tensor


class CausalAttention(nn.Module):
    """Attention of each token to itself, to the tokens before it in the input, and to those in memory."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm(x)).view(batch, tokens, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        mask = None
        if memory is not None:
            key, value = torch.cat([memory.key, key], dim=2), torch.cat([memory.value, value], dim=2)
            mask = torch.ones(tokens, key.shape[2], dtype=torch.bool, device=x.device).tril(key.shape[2] - tokens)
        attended = F.scaled_dot_product_attention(query, key, value, mask, is_causal=mask is None)
        return self.out(attended.transpose(1, 2).reshape(batch, tokens, width)), Memory(key, value)


class CausalLayer(nn.Module):
    """Causal attention and a feed-forward layer, each with its norm and a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = CausalAttention(width, heads)
        self.mlp = nn.Sequential(
            nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)
        )

    def forward(self, x: Tensor, memory: Memory | None) -> tuple[Tensor, Memory]:
        attended, longer = self.attn(x, memory)
        x = x + attended
        return x + self.mlp(x), longer


class FlowBlock(nn.Module):
    """Affine autoregressive map of tokens, `z_t = (x_t - mu_t(x_<t)) exp(-s_t(x_<t))`; the first token stays.

    Args:
        tokens, features: shape of the sequences.
        width, layers, heads: of the transformer.
        flip: whether the recursion runs from the last token to the first.
    """

    def __init__(self, tokens: int, features: int, width: int, layers: int, heads: int, flip: bool) -> None:
        super().__init__()
        self.flip = flip
        self.embed = nn.Linear(features, width)
        self.position = nn.Parameter(0.02 * torch.randn(tokens, width))
        self.layers = nn.ModuleList(CausalLayer(width, heads) for _ in range(layers))
        self.final = zero(nn.Linear(width, 2 * features))

    def ordered(self, x: Tensor, inverse: bool = False) -> Tensor:
        """Tokens (batch, tokens, features) in the order of the recursion, or back from it."""
        return x.flip(1) if self.flip else x

    def extend(self, x: Tensor, start: int, memory: list[Memory] | None) -> tuple[Tensor, Tensor, list[Memory]]:
        """Coefficients behind some tokens: mu and s of the token after each of them, and the memory that holds them.

        Args:
            x: tokens `start, start + 1, ...` in the order of the recursion, (batch, some, features).
            start: how many tokens come before them.
            memory: of those tokens; None where there are none.
        """
        h = self.embed(x) + self.position[start : start + x.shape[1]]
        longer: list[Memory] = []
        for index, layer in enumerate(self.layers):
            h, known = layer(h, None if memory is None else memory[index])
            longer.append(known)
        mu, s = self.final(h).chunk(2, dim=-1)
        return mu, s, longer

    def projections(self) -> tuple[Tensor, Tensor]:
        """The rows of the output layer that make mu, and those that make s."""
        mu, s = self.final.weight.chunk(2)
        return mu, s

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Latent tokens, and the logarithm of the map's determinant per sample."""
        x = self.ordered(x)
        mu, s, _ = self.extend(x[:, :-1], 0, None)
        z = torch.cat([x[:, :1], (x[:, 1:] - mu) * (-s).exp()], dim=1)
        return self.ordered(z, inverse=True), -s.flatten(1).sum(1)


class TinyTarFlow(nn.Module):
    """Transformer autoregressive flow: images (batch, channels, size, size) to standard normal tokens.

    Args:
        size: height and width of the images, a multiple of `patch`.
        channels: of the images.
        patch: side of the squares that become tokens.
        width: of the transformers' tokens, a multiple of `heads`.
        blocks: number of blocks; every other one runs from the last token to the first.
        layers: of the transformer of each block.
        heads: of the attention.

    Attributes:
        tokens, features: shape of a latent sequence: `z = torch.randn(batch, flow.tokens, flow.features)`.

    Source of the design: Zhai et al. (2024), arXiv 2412.06329.
    """

    def __init__(
        self,
        size: int = 8,
        channels: int = 1,
        patch: int = 1,
        width: int = 64,
        blocks: int = 4,
        layers: int = 2,
        heads: int = 4,
    ) -> None:
        super().__init__()
        if size % patch or width % heads:
            raise InputError(
                f"size must be a multiple of patch and width one of heads, got size={size}, patch={patch}, "
                f"width={width}, heads={heads}"
            )
        self.size, self.patch = size, patch
        self.tokens, self.features = (size // patch) ** 2, channels * patch**2
        self.blocks = nn.ModuleList(
            FlowBlock(self.tokens, self.features, width, layers, heads, flip=index % 2 == 1) for index in range(blocks)
        )

    def patchify(self, images: Tensor) -> Tensor:
        """Images as tokens (batch, tokens, features), row by row."""
        return F.unfold(images, self.patch, stride=self.patch).transpose(1, 2)

    def unpatchify(self, x: Tensor) -> Tensor:
        """Tokens as images."""
        return F.fold(x.transpose(1, 2), (self.size, self.size), self.patch, stride=self.patch)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Latent tokens, and the logarithm of the map's determinant per sample."""
        x, volume = self.patchify(images), images.new_zeros(len(images))
        for block in self.blocks:
            x, change = block(x)
            volume = volume + change
        return x, volume


@recipe("digits-tarflow", TinyTarFlow, summary="autoregressive flow on 8x8 digits: 4 blocks of 64 tokens, width 64")
def train_digits(model: nn.Module, report: Report, steps: int = 600, batch: int = 32) -> float:
    """Negative log-likelihood per pixel, without its constant; the digits are dequantised with normal noise of 0.1."""
    data, _ = images()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        index = torch.randint(len(data), (batch,), generator=generator)
        noisy = data[index] + 0.1 * torch.randn(batch, 1, 8, 8, generator=generator)
        z, volume = model(noisy)
        return 0.5 * z.square().mean() - volume.mean() / z[0].numel()

    return fit(model, loss, report, steps=steps)
