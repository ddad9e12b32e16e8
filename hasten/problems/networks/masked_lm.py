"""A small masked language model over bytes, and the one that writes Python."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.problems.networks.dit import Attention
from hasten.problems.networks.recipe import Report, fit, recipe
from hasten.problems.text import stdlib_text

MASK = 256
CONTEXT = 64


class MaskedBlock(nn.Module):
    """Attention in both directions and a feed-forward layer, each after its norm, on a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(approximate="tanh"), nn.Linear(4 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class MaskedLM(nn.Module):
    """Bytes with masks (batch, length) to logits (batch, length, 256) of the byte at each place.

    It is not told the time of the diffusion: how many bytes are hidden says it.

    Args:
        width: of the residual stream, a multiple of `heads`.
        depth: number of blocks.
        context: greatest length.
        heads: of the attention.
    """

    def __init__(self, width: int = 128, depth: int = 3, context: int = CONTEXT, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"width must be a multiple of heads, got width={width} and heads={heads}")
        self.embed = nn.Embedding(MASK + 1, width)
        self.position = nn.Parameter(0.02 * torch.randn(context, width))
        self.blocks = nn.ModuleList(MaskedBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256)
        nn.init.normal_(self.embed.weight, std=0.02)

    def forward(self, tokens: Tensor) -> Tensor:
        length, context = tokens.shape[-1], len(self.position)
        if length > context:
            raise InputError(f"the network takes at most {context} bytes, got {length}")
        x = self.embed(tokens.long()) + self.position[:length]
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def masked_loss(model: nn.Module, clean: Tensor, generator: torch.Generator) -> Tensor:
    """Negative evidence bound in nats per byte: cross entropy of the hidden bytes over their share t.

    The shares of a batch are spread evenly over (0, 1) from a random offset, which lowers the variance.
    """
    count, length = clean.shape
    t = (torch.rand(1, generator=generator) + torch.arange(count) / count).remainder(1.0).clamp(min=0.02)
    hidden = torch.rand(count, length, generator=generator) < t[:, None]
    logits = model(clean.masked_fill(hidden, MASK))
    missed = F.cross_entropy(logits[hidden], clean[hidden], reduction="none")
    return (missed / t[:, None].expand(count, length)[hidden]).sum() / clean.numel()


def draw(text: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Random windows of a text, (count, CONTEXT) int64."""
    starts = torch.randint(len(text) - CONTEXT, (count, 1), generator=generator)
    return text[starts + torch.arange(CONTEXT)].long()


def halves() -> tuple[Tensor, Tensor]:
    """The source text of the standard library: nine tenths to train on, and the last tenth."""
    text = stdlib_text()
    cut = 9 * len(text) // 10
    return text[:cut], text[cut:]


@recipe(
    "stdlib-masked",
    MaskedLM,
    summary="masked diffusion over Python source, byte by byte: 3 blocks, width 128",
)
def train_masked(model: nn.Module, report: Report, steps: int = 1500, batch: int = 32) -> float:
    """Masked diffusion with the log-linear schedule, as in MDLM (Sahoo et al. 2024, arXiv 2406.07524)."""
    text, _ = halves()

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        return masked_loss(model, draw(text, batch, generator), generator)

    return fit(model, loss, report, steps=steps, lr=3e-3, ema=0.99)
