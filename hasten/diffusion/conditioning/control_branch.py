"""ControlNeXt: a light branch encodes a control, and is normalised to the features that it is added to."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.registry import register
from hasten.diffusion.conditioning.features import first, like, submodule, to_map

CARD = Card(
    name="controlnext",
    family="diffusion",
    title="ControlNeXt: Powerful and Efficient Control for Image and Video Generation",
    authors="Peng, Wang, Zhang, Li, Yang & Jia",
    year=2024,
    arxiv="2408.06070",
    paper_id=58,
    summary="Adds a light encoder's features at one place of a trained model, with the mean and spread of those there.",
    cost="A few convolutions per evaluation; trains the encoder and a small part of the model.",
    when="To give a trained model a new kind of control with few parameters and few training steps.",
    kinds=("sample",),
    needs=("control",),
    use="from hasten.diffusion import ControlNeXt, Denoiser, FlowMatching, LightControl\n"
    "from hasten.problems.networks.dit import TinyDiT\n"
    "model = TinyDiT()  # take a trained one\n"
    'controlled = ControlNeXt(model, "blocks.0", LightControl(1, 32, out_channels=64))\n'
    'optimizer = torch.optim.AdamW(controlled.trainable("blocks.1.attn"), lr=1e-3)\n'
    "x, t, controls = torch.randn(4, 1, 8, 8), torch.rand(4), torch.rand(4, 1, 4, 4)\n"
    "(controlled(x, t, control=controls) - x).square().mean().backward()  # your loss, in a loop\n"
    "optimizer.step()\n"
    'denoiser = Denoiser(controlled.given(controls), FlowMatching(), "velocity")\n'
    'samples = hasten.diffusion.sample(denoiser, (4, 1, 8, 8), "ddim", steps=5)',
)

FLAT = 1e-5
"""Spread, relative to the mean, below which a control counts as constant: rounding is not to be blown up."""


class CrossNorm(nn.Module):
    """Adds a control with the features' own mean and spread: `h + scale ((c - mean c) std h/(std c + eps) + mean h)`.

    Means and standard deviations are over all channels and pixels of a sample. A control that is constant up to
    rounding gives `h + scale mean h`. It has no parameters.

    Args:
        scale: of what is added.
        eps: guards the division.

    Source: Peng et al. (2024), arXiv 2408.06070.
    """

    def __init__(self, scale: float = 1.0, eps: float = 1e-12) -> None:
        super().__init__()
        self.scale = float(check.real("scale", scale))
        self.eps = float(check.positive("eps", eps))

    def normalised(self, hidden: Tensor, control: Tensor) -> Tensor:
        """The control with the mean and the spread of the features; both (batch, channels, height, width)."""
        mean, spread = _moments(control)
        target_mean, target_spread = _moments(hidden)
        gain = target_spread / (spread + self.eps)
        gain = torch.where(spread <= FLAT * mean.abs(), torch.zeros_like(gain), gain)
        return (control - mean) * gain + target_mean

    def forward(self, hidden: Tensor, control: Tensor) -> Tensor:
        """Controlled features."""
        return hidden + self.scale * self.normalised(hidden, control)


class ZeroConv(nn.Module):
    """Adds a control through a 1x1 convolution that begins at zero, as ControlNet does: the baseline of `CrossNorm`.

    Args:
        in_channels: of the control.
        out_channels: of the features.

    Source: Zhang, Rao & Agrawala (2023), arXiv 2302.05543.
    """

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, 1)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, control: Tensor) -> Tensor:
        """Controlled features."""
        return hidden + self.project(control)


class LightControl(nn.Module):
    """A light encoder of controls: a stem, residual blocks, each followed by a halving of the size if wanted.

    Args:
        in_channels: of the control.
        width: channels inside.
        out_channels: of the result, made by a 1x1 convolution; None returns `width` channels without it.
        blocks: residual blocks of two 3x3 convolutions.
        halvings: how many of the blocks, from the first, are followed by a convolution with stride 2.
    """

    def __init__(
        self, in_channels: int, width: int = 32, *, out_channels: int | None = None, blocks: int = 2, halvings: int = 0
    ) -> None:
        super().__init__()
        check.integer("in_channels", in_channels, 1)
        check.integer("width", width, 1)
        check.integer("blocks", blocks, 0)
        check.integer("halvings", halvings, 0, blocks)
        parts: list[nn.Module] = [nn.Conv2d(in_channels, width, 3, padding=1), _norm(width), nn.SiLU()]
        for place in range(blocks):
            parts.append(_Residual(width))
            if place < halvings:
                parts.append(nn.Conv2d(width, width, 3, stride=2, padding=1))
        if out_channels is not None:
            parts.append(nn.Conv2d(width, check.integer("out_channels", out_channels, 1), 1))
        self.parts = nn.Sequential(*parts)

    def forward(self, control: Tensor) -> Tensor:
        """Features (batch, channels, h, w) of a control (batch, in_channels, H, W)."""
        return self.parts(control)


@register(CARD)
class ControlNeXt(nn.Module):
    """A trained model with a control, to be called in its place: `Denoiser(controlled.given(control), schedule)`.

    During a call, the output of the module at `place` is replaced by `inject(output, branch(control))`, the control
    pooled to the output's size. The model itself is not changed and holds no hooks between calls. As a module, this
    consists of the branch and the injection alone.

    Args:
        network: the model, any torch module.
        place: name of one of its modules, an early one, that returns maps or a square number of tokens.
        branch: encodes the control, e.g. `LightControl`; returns maps with the channels that `inject` takes.
        inject: `CrossNorm()` if not given; `ZeroConv` for comparison.

    Raises:
        InputError: there is no such place, no control is given, or its channels do not fit.

    Cost: that of the branch. Source: Peng et al. (2024), arXiv 2408.06070.
    """

    def __init__(self, network: nn.Module, place: str, branch: nn.Module, inject: nn.Module | None = None) -> None:
        super().__init__()
        submodule(network, place)
        self.branch, self.inject = branch, CrossNorm() if inject is None else inject
        self.place = place
        self.control: Tensor | None = None
        self._network = (network,)

    @property
    def network(self) -> nn.Module:
        """The model."""
        return self._network[0]

    def given(self, control: Tensor) -> ControlNeXt:
        """The same under a control (batch, channels, H, W), for samplers, which know of none."""
        made = copy.copy(self)
        made.control = control
        return made

    def trainable(self, *names: str) -> list[nn.Parameter]:
        """Parameters of the branch, of the injection and of these modules of the model, for an optimizer.

        Gradients of the chosen parameters are turned on; training them changes the model.
        """
        chosen = [part for name in names for part in submodule(self.network, name).parameters()]
        for part in chosen:
            part.requires_grad_(True)
        return [*self.parameters(), *dict.fromkeys(chosen)]

    def forward(self, *args: Any, control: Tensor | None = None, **options: Any) -> Any:
        """The model's answer to its own arguments under a control; one of fewer rows is repeated."""
        control = self.control if control is None else control
        if control is None:
            raise InputError("no control is given; call controlled.given(control), or pass control=")
        handle = submodule(self.network, self.place).register_forward_hook(
            lambda module, inputs, output: self._injected(output, control)
        )
        try:
            return self.network(*args, **options)
        finally:
            handle.remove()

    def _injected(self, output: Any, control: Tensor) -> Any:
        features = first(output)
        hidden = to_map(features)
        rows = len(hidden)
        if control.ndim != 4 or rows % len(control):
            raise InputError(
                f"control must have shape (batch, channels, H, W) for {rows} samples, got {tuple(control.shape)}"
            )
        encoded = F.adaptive_avg_pool2d(self.branch(control.to(hidden)), (hidden.shape[-2], hidden.shape[-1]))
        if isinstance(self.inject, CrossNorm) and encoded.shape[1] != hidden.shape[1]:
            raise InputError(
                f"the branch must return the {hidden.shape[1]} channels of {self.place}, got {encoded.shape[1]}; set "
                "out_channels"
            )
        changed = like(features, self.inject(hidden, encoded.repeat(rows // len(control), 1, 1, 1)))
        if isinstance(output, (tuple, list)):
            return type(output)((changed, *output[1:]))
        return changed


class _Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            _norm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
            _norm(width),
            nn.SiLU(),
            nn.Conv2d(width, width, 3, padding=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _norm(width: int) -> nn.GroupNorm:
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if width % groups == 0), width)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    dims = (1, 2, 3)
    return x.mean(dims, keepdim=True), x.std(dims, keepdim=True)
