"""Language modelling over bytes: a small GPT on text that every machine has, and on Shakespeare."""

from __future__ import annotations

import sysconfig
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.catalogue import ready
from hasten.core.errors import DataError, InputError
from hasten.core.kinds.train import training
from hasten.core.problem import Problem
from hasten.problems.data import load
from hasten.problems.evaluate import held_out

Windows = tuple[Tensor, Tensor]


class Block(nn.Module):
    """Causal self-attention and a feed-forward layer, each after its layer norm, on a residual stream."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.out(attended.transpose(1, 2).reshape(batch, length, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class ByteGPT(nn.Module):
    """GPT over bytes: (batch, length) integers in 0..255 -> (batch, length, 256) logits of the next byte."""

    def __init__(self, width: int = 64, depth: int = 2, context: int = 64, heads: int = 4) -> None:
        super().__init__()
        if width % heads:
            raise InputError(f"width must be a multiple of the {heads} heads, got {width}")
        self.token = nn.Embedding(256, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 256, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.02)

    def forward(self, text: Tensor) -> Tensor:
        places = torch.arange(text.shape[-1], device=text.device)
        return self.head(self.norm(self.blocks(self.token(text.long()) + self.position(places))))


def next_byte_loss(logits: Tensor, text: Tensor) -> Tensor:
    """Mean cross entropy, nats per byte."""
    return F.cross_entropy(logits.flatten(0, -2), text.flatten().long())


def windows(text: Tensor, context: int) -> Windows:
    """Views (n, context) of the text that do not overlap, and the bytes that follow each byte of them."""
    cut = text.unfold(0, context + 1, context)
    return cut[:, :-1], cut[:, 1:]


def language_model(
    name: str, text: Callable[[], Tensor], width: int, depth: int, context: int, batch: int, target: float, summary: str
) -> Problem:
    """Byte-level GPT on a text; its last tenth is held out, 128 windows spread over that are the metric's."""
    check.integer("width", width, 4)
    check.integer("depth", depth, 1)
    check.integer("context", context, 2)

    def part(start: float, end: float) -> Windows:
        whole = text()
        return windows(whole[int(start * len(whole)) : int(end * len(whole))], context)

    def validation() -> Windows:
        inputs, labels = part(0.9, 1.0)
        spread = torch.linspace(0, len(inputs) - 1, min(128, len(inputs))).long()
        return inputs[spread], labels[spread]

    return training(
        name,
        lambda: ByteGPT(width, depth, context),
        partial(part, 0.0, 0.9),
        next_byte_loss,
        batch_size=batch,
        metric=held_out(next_byte_loss, validation, batch_size=32),
        measures="held-out cross entropy, nats per byte",
        target=target,
        budget=400,
        every=20,
        contenders=("optim.adamw", "optim.sgd", "optim.adopt", "optim.lion", "optim.linear-decay"),
        summary=summary,
    )


@cache
def stdlib_text() -> Tensor:
    """Source of the top-level modules of the Python standard library, joined in the order of their names, uint8."""
    files = sorted(Path(sysconfig.get_paths()["stdlib"]).glob("*.py"), key=lambda file: file.name)
    if len(files) < 20:
        raise DataError(
            "this Python has no source files of its standard library; use the problem tinyshakespeare instead"
        )
    return torch.frombuffer(bytearray(b"".join(file.read_bytes() for file in files)), dtype=torch.uint8)


@cache
def shakespeare_text() -> Tensor:
    """The tiny Shakespeare corpus, uint8."""
    return torch.from_numpy(np.array(load("tinyshakespeare")["text"]))


@ready("stdlib-lm", kind="train")
def stdlib_lm(width: int = 64, depth: int = 2, context: int = 64, batch: int = 16) -> Problem:
    """Byte-level GPT on the source text of the Python standard library, which needs no download.

    The text is that of the running Python, so values of the metric compare within one Python version.

    Args:
        width: width of the residual stream, a multiple of 4.
        depth: number of transformer blocks.
        context: bytes per window.
        batch: windows per step.
    """
    return language_model(
        "stdlib-lm", stdlib_text, width, depth, context, batch, 2.25, f"byte GPT {depth}x{width} on Python's own source"
    )


@ready("tinyshakespeare", kind="train")
def tinyshakespeare(width: int = 64, depth: int = 2, context: int = 64, batch: int = 16) -> Problem:
    """Byte-level GPT on the tiny Shakespeare corpus (1.1 MB, downloaded once).

    Args:
        width: width of the residual stream, a multiple of 4.
        depth: number of transformer blocks.
        context: bytes per window.
        batch: windows per step.
    """
    return language_model(
        "tinyshakespeare",
        shakespeare_text,
        width,
        depth,
        context,
        batch,
        2.3,
        f"byte GPT {depth}x{width} on Shakespeare",
    )
