"""Well-known ways to sample, as arguments of `sample`: `sample(denoiser, shape, **presets.ddim_cfg(w=2.0))`."""

from __future__ import annotations

from typing import Any

from hasten.core import check
from hasten.core.card import Card, Real
from hasten.core.registry import register
from hasten.diffusion.guidance.cfg import CFG
from hasten.diffusion.guidance.race import Guided
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.ddpm import DDPM

CARD = Card(
    name="ddim-cfg",
    family="diffusion",
    title="Enhancing Diffusion Models for High-Quality Image Generation",
    authors="Shah, Gromis & Pinto",
    year=2024,
    arxiv="2412.14422",
    paper_id=355,
    summary="DDIM in 50 uniform steps under classifier-free guidance, instead of a thousand ancestral steps.",
    cost="Two evaluations per step.",
    when="As the baseline for conditional models, with a scale of about 2.",
    kinds=("sample",),
    needs=("condition",),
    search_space={"w": Real(1.0, 8.0)},
    use="from hasten.diffusion import presets\n"
    "labels = torch.arange(16) % 3\n"
    "samples = hasten.diffusion.sample(denoiser.given(labels), (16, 2), **presets.ddim_cfg({hyper}))",
)


def _guided(w: float = 2.0, eta: float = 0.0) -> Guided:
    made = Guided(CFG(w), DDIM(eta, grid="uniform"))
    object.__setattr__(made, "card", CARD)
    return made


@register(CARD, _guided)
def ddim_cfg(steps: int = 50, w: float = 2.0, eta: float = 0.0) -> dict[str, Any]:
    """DDIM on a uniform grid under classifier-free guidance; `2 steps` evaluations.

    Args:
        steps: steps to take.
        w: guidance scale.
        eta: share of fresh noise.

    Source of the recipe: Shah, Gromis & Pinto (2024), arXiv 2412.14422.
    """
    return {"sampler": DDIM(eta, grid="uniform"), "steps": check.integer("steps", steps, 1), "guidance": CFG(w)}


def ddpm(steps: int = 1000, clip: float | None = None) -> dict[str, Any]:
    """Ancestral sampling on a uniform grid, to clean data; `steps` evaluations. See `DDPM`."""
    return {"sampler": DDPM(clip=clip, grid="uniform"), "steps": check.integer("steps", steps, 2)}
