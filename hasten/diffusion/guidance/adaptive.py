"""Adaptive guidance: guides only until the two predictions agree."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from hasten.core import check
from hasten.core.card import Card, Real
from hasten.diffusion.guidance.base import Guidance, Look, Split
from hasten.diffusion.guidance.race import guidance

CARD = Card(
    name="adaptive-guidance",
    family="diffusion",
    title="Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
    authors="Castillo, Kohler, Perez, Arnab & Schoenfeld",
    year=2023,
    arxiv="2312.12487",
    paper_id=346,
    summary="Drops the unconditional prediction for good once it points the same way as the conditional one.",
    cost="Two evaluations per guided one, one after the switch.",
    when="With many steps, on models whose predictions come to agree towards the end.",
    kinds=("sample",),
    needs=("condition",),
    search_space={"w": Real(1.0, 8.0), "warmup": Real(0.2, 0.8)},
    use="labels = torch.arange(16) % 3\n"
    "guidance = hasten.diffusion.AdaptiveGuidance({hyper})\n"
    "samples = hasten.diffusion.sample(denoiser.given(labels), (16, 2), steps=20, guidance=guidance)",
)


@dataclass
class Settled:
    """Which samples have left guidance behind; None before the first evaluation."""

    rows: Tensor | None = None


@guidance(CARD)
@dataclass(frozen=True)
class AdaptiveGuidance(Guidance):
    """Classifier-free guidance until `cos(eps_c, eps_u) > gamma`, then `eps_c` alone, each sample for itself.

    Samples that are done leave the unconditional batch; `nfe` counts the mean over the samples. (A `null`
    condition that is no tensor or number cannot be cut: the whole batch stays until all are done.)

    Args:
        w: guidance scale.
        gamma: cosine above which a sample goes without guidance, in (-1, 1].
        warmup: share of the steps in which nothing is tested, in [0, 1]. Exact and small models agree in pure noise
            too, where the test would end guidance at once. The paper has none (0).

    Cost: between one and two evaluations. Source: Castillo et al. (2023), arXiv 2312.12487.
    """

    remembers: ClassVar[bool] = True
    w: float = 7.5
    gamma: float = 0.991
    warmup: float = 0.2

    def __post_init__(self) -> None:
        check.real("w", self.w)
        check.real("gamma", self.gamma, -1.0, 1.0, open_low=True)
        check.real("warmup", self.warmup, 0.0, 1.0)

    def memory(self) -> Settled:
        return Settled()

    def guide(self, look: Look) -> Split:
        settled: Settled = look.memory
        if settled.rows is None or not bool(settled.rows.any()):
            conditional, unconditional = look.both()
            settled.rows = self._agreeing(look, conditional.eps, unconditional.eps)
            return unconditional.towards(conditional, self.w)
        conditional = look.conditional()
        if bool(settled.rows.all()):
            return conditional
        rows = (~settled.rows).nonzero()[:, 0]
        picked = Split(conditional.x0[rows], conditional.eps[rows])
        unconditional = look.unconditional(rows)
        settled.rows = settled.rows.index_copy(0, rows, self._agreeing(look, picked.eps, unconditional.eps))
        steered = unconditional.towards(picked, self.w)
        return Split(conditional.x0.index_copy(0, rows, steered.x0), conditional.eps.index_copy(0, rows, steered.eps))

    def _agreeing(self, look: Look, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """The samples whose two predictions point the same way, once the warm-up is over."""
        if look.progress < self.warmup:
            return torch.zeros(len(conditional), dtype=torch.bool, device=conditional.device)
        return cosine_similarity(conditional.flatten(1), unconditional.flatten(1)) > self.gamma
