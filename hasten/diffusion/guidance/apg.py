"""Adaptive projected guidance: without the part of the update that only makes samples louder."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Real
from hasten.diffusion.guidance.base import Guidance, Look, Split
from hasten.diffusion.guidance.race import guidance

CARD = Card(
    name="apg",
    family="diffusion",
    title="Eliminating Oversaturation and Artifacts of High Guidance Scales in Diffusion Models",
    authors="Sadat, Hilliges & Weber",
    year=2024,
    arxiv="2410.02416",
    paper_id=452,
    summary="Drops the part of the guidance update along the prediction, bounds its length and reverses its momentum.",
    cost="Two evaluations per guided one, as CFG, and one stored tensor.",
    when="At high guidance scales, where CFG oversaturates.",
    kinds=("sample",),
    needs=("condition",),
    search_space={"w": Real(1.0, 12.0), "eta": Real(0.0, 1.0), "momentum": Real(-0.75, 0.0)},
    use="labels = torch.arange(16) % 3\n"
    "guidance = hasten.diffusion.APG({hyper})\n"
    "samples = hasten.diffusion.sample(denoiser.given(labels), (16, 2), steps=20, guidance=guidance)",
)


@dataclass
class Momentum:
    """Running sum of the differences of a chain; None before the first."""

    value: Tensor | None = None


@guidance(CARD)
@dataclass(frozen=True)
class APG(Guidance):
    """Adaptive projected guidance, on predictions of clean data.

    With `D_c` and `D_u` the two predictions: `m <- (D_c - D_u) + momentum m`; shortened to the norm `norm_threshold`
    per sample, and split into `m_par` along `D_c` and `m_orth` across it; `D = D_c + (w - 1) (m_orth + eta m_par)`.
    With `eta=1`, `momentum=0` and no threshold this is CFG. A sample with `D_c = 0` has no direction: all is across.

    Args:
        w: guidance scale.
        eta: share of the parallel part that is kept; it is what saturates samples.
        momentum: factor of the sum of earlier differences; negative values push away from where guidance led before.
        norm_threshold: largest norm of a sample's difference, over all axes but the batch; None for no limit. The
            paper uses 2.5 to 15, depending on the model.

    Cost: two evaluations and one stored tensor. Source: Sadat et al. (2024), arXiv 2410.02416.
    """

    remembers: ClassVar[bool] = True
    w: float = 7.5
    eta: float = 0.0
    momentum: float = -0.5
    norm_threshold: float | None = None

    def __post_init__(self) -> None:
        check.real("w", self.w)
        check.real("eta", self.eta)
        check.real("momentum", self.momentum, -1.0, 1.0, open_low=True, open_high=True)
        if self.norm_threshold is not None:
            check.positive("norm_threshold", self.norm_threshold)

    def memory(self) -> Momentum:
        return Momentum()

    def guide(self, look: Look) -> Split:
        conditional, unconditional = look.both()
        difference = conditional.x0 - unconditional.x0
        past: Momentum = look.memory
        if past.value is not None and self.momentum != 0.0:
            difference = difference + self.momentum * past.value
        past.value = difference
        if self.norm_threshold is not None:
            norm = _rows(difference).norm(dim=1).clamp_min(torch.finfo(difference.dtype).tiny)
            difference = difference * _like(self.norm_threshold / norm, difference).clamp(max=1.0)
        parallel = along(conditional.x0, difference)
        return conditional.moved(look, (self.w - 1.0) * (difference - (1.0 - self.eta) * parallel))


def along(direction: Tensor, update: Tensor) -> Tensor:
    """Each sample's projection of `update` onto `direction`, computed in float64; zero where there is no direction."""
    d, u = _rows(direction).double(), _rows(update).double()
    unit = torch.nn.functional.normalize(d, dim=1)
    return ((u * unit).sum(1, keepdim=True) * unit).to(update.dtype).view_as(update)


def _rows(x: Tensor) -> Tensor:
    return x.reshape(len(x), -1)


def _like(values: Tensor, x: Tensor) -> Tensor:
    return values.reshape(-1, *(1,) * (x.ndim - 1))
