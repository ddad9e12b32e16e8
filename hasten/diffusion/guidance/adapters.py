"""Adapters of attention layers that know the guidance scale, the time and the label."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core.errors import InputError


class Conditions(nn.Module):
    """Embeds guidance scale, time and label as tokens (batch, 2 or 3, hidden).

    Args:
        hidden: width of the tokens, even.
        w_range, T: scales and times run through these intervals.
        classes: number of labels that are embedded; None embeds none. The label `classes` stands for no label.
    """

    def __init__(self, hidden: int, w_range: tuple[float, float], T: float, classes: int | None) -> None:
        super().__init__()
        self.w_range, self.T = w_range, T
        self.scale, self.time = ScalarEmbedding(hidden), ScalarEmbedding(hidden)
        self.label = None if classes is None else nn.Embedding(classes + 1, hidden)

    def forward(self, w: Tensor, t: Tensor, labels: Tensor | None) -> Tensor:
        low, high = self.w_range
        tokens = [self.scale((w - low) / (high - low)), self.time(t / self.T)]
        if self.label is not None:
            if labels is None:
                raise InputError("the adapters know labels, but the denoiser has none; give denoiser.given(labels)")
            tokens.append(self.label(labels))
        return torch.stack(tokens, dim=1)


class ScalarEmbedding(nn.Module):
    """Numbers in [0, 1], shape (batch,), as vectors (batch, hidden): sines and cosines of up to two periods, an MLP."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.register_buffer("rates", 2.0 * math.pi * torch.linspace(0.0, 2.0, hidden // 2), persistent=False)
        self.layers = nn.Sequential(
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.LayerNorm(hidden)
        )

    def forward(self, u: Tensor) -> Tensor:
        rates: Tensor = self.rates  # type: ignore[assignment]
        angles = u.to(rates)[:, None] * rates
        return self.layers(torch.cat([angles.cos(), angles.sin()], dim=1))


class BottleneckAdapter(nn.Module):
    """`B relu(A h + c)`, with c the sum of the embedded conditions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, hidden)
        self.up = zero_linear(hidden, width)

    def forward(self, h: Tensor, conditions: Tensor) -> Tensor:
        return self.up(F.relu(self.down(h) + conditions.sum(1, keepdim=True)))


class AdditiveAdapter(nn.Module):
    """The same offset for all tokens, `B norm(relu(A c))`, with c the sum of the embedded conditions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(), nn.LayerNorm(hidden))
        self.up = zero_linear(hidden, width)

    def forward(self, h: Tensor, conditions: Tensor) -> Tensor:
        return self.up(self.layers(conditions.sum(1, keepdim=True))).expand_as(h)


class CrossAttentionAdapter(nn.Module):
    """`B attention(A h; K c, V c)`: each token h looks up the embedded conditions."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, hidden, bias=False)
        self.key = nn.Linear(hidden, hidden, bias=False)
        self.value = nn.Linear(hidden, hidden, bias=False)
        self.up = zero_linear(hidden, width)

    def forward(self, h: Tensor, conditions: Tensor) -> Tensor:
        found = F.scaled_dot_product_attention(self.query(h), self.key(conditions), self.value(conditions))
        return self.up(found)


ADAPTERS = {"bottleneck": BottleneckAdapter, "additive": AdditiveAdapter, "cross-attention": CrossAttentionAdapter}


@dataclass
class AdapterHook:
    """Adds an adapter's answer to what its attention layer returns."""

    name: str
    adapter: nn.Module
    conditions: Tensor
    inside: Tensor | None

    def __call__(self, layer: nn.Module, args: Any, output: Any) -> Any:
        h = output[0] if isinstance(output, tuple) else output
        if h.ndim != 3 or len(h) != len(self.conditions):
            raise InputError(
                f"{self.name!r} must return tokens (batch, tokens, width) of the {len(self.conditions)} samples, "
                f"got {tuple(h.shape)}"
            )
        added = self.adapter(h.to(self.conditions.dtype), self.conditions).to(h.dtype)
        if self.inside is not None:
            added = added * self.inside.to(h.dtype)[:, None, None]
        return (h + added, *output[1:]) if isinstance(output, tuple) else h + added


def zero_linear(inputs: int, outputs: int) -> nn.Linear:
    """A linear layer that begins at zero."""
    layer = nn.Linear(inputs, outputs)
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


def output_width(name: str, module: nn.Module) -> int:
    """Width of the tokens that an attention module returns: that of its last linear layer.

    Raises:
        InputError: the module has no linear layer.
    """
    if isinstance(module, nn.MultiheadAttention):
        return module.embed_dim
    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    if not layers:
        raise InputError(f"the width of what {name!r} returns is not known, for it holds no Linear layer")
    return layers[-1].out_features


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """For a while no parameter of the module gets a gradient."""
    free = [parameter for parameter in module.parameters() if parameter.requires_grad]
    try:
        for parameter in free:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter in free:
            parameter.requires_grad_(True)
