"""DDIM inversion: every step backwards with the noise seen at its wrong end, the baseline of all inversions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hasten.core.card import Card, Choice
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import sampler
from hasten.diffusion.inversion.base import Inverter, invert

CARD = Card(
    name="ddim-inversion",
    family="diffusion",
    title="Denoising Diffusion Implicit Models",
    authors="Song, Meng & Ermon",
    year=2020,
    arxiv="2010.02502",
    summary="Walks DDIM's steps backwards, taking the noise at the cleaner state for that at the noisier one.",
    cost="One evaluation per step, nothing stored.",
    when="As the baseline; where a rough latent is enough.",
    kinds=("invert",),
    search_space={"grid": Choice("quadratic", "uniform", "logsnr", "karras")},
    use='noise = hasten.diffusion.invert(denoiser, torch.randn(16, 2), method="ddim-inversion", steps=20{hyper})',
)


@sampler(CARD)
@dataclass(frozen=True)
class DDIMInversion(Inverter):
    """DDIM backwards: `z_t = (alpha_t/alpha_s) z_s + (sigma_t - (alpha_t/alpha_s) sigma_s) eps(z_s, t)`, t noisier.

    DDIM itself would need `eps(z_t, t)`, which is not known yet; the network gets the noise level t but the state z_s.
    The error is of first order in the step.

    Args:
        grid, steps: see `Sampler`; the grid is walked from t_min to T.

    Cost: one evaluation per step. Source: Song, Meng & Ermon (2020), arXiv 2010.02502.
    """

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        _, t, scale, weight = state.plan[state.index]
        return (state.x * scale).add_(denoiser.eps(state.x, t), alpha=weight)


def ddim_invert(denoiser: Denoises, x0: Tensor, steps: int | None = None, **options: Any) -> Tensor:
    """`invert` by DDIM; see there."""
    return invert(denoiser, x0, steps, "ddim-inversion", **options)
