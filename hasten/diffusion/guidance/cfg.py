"""Classifier-free guidance, and CFG++, which noises the guided estimate with the unconditional noise."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any, ClassVar

from hasten.core import check
from hasten.core.card import Card, Real
from hasten.diffusion.guidance.base import Guidance, Look, Split
from hasten.diffusion.guidance.race import guidance

CFG_CARD = Card(
    name="cfg",
    family="diffusion",
    title="Classifier-Free Diffusion Guidance",
    authors="Ho & Salimans",
    year=2022,
    arxiv="2207.12598",
    summary="Extrapolates from the unconditional prediction through the conditional one.",
    cost="Two evaluations per guided one.",
    when="As the baseline, at scales up to about 3.",
    kinds=("sample",),
    needs=("condition",),
    search_space={"w": Real(1.0, 8.0)},
    use="labels = torch.arange(16) % 3\n"
    "guidance = hasten.diffusion.CFG({hyper})\n"
    "samples = hasten.diffusion.sample(denoiser.given(labels), (16, 2), steps=20, guidance=guidance)",
)
CFGPP_CARD = Card(
    name="cfgpp",
    family="diffusion",
    title="CFG++: Manifold-constrained Classifier Free Guidance for Diffusion Models",
    authors="Chung, Kim, Park, Nam & Ye",
    year=2024,
    arxiv="2406.08070",
    paper_id=366,
    summary="Interpolates between the two predictions, and noises the estimate with the unconditional noise.",
    cost="Two evaluations per guided one, as CFG.",
    when="Where CFG saturates the samples, and where guided samples are to be inverted.",
    kinds=("sample",),
    needs=("condition",),
    search_space={"lam": Real(0.0, 1.0)},
    use="labels = torch.arange(16) % 3\n"
    "guidance = hasten.diffusion.CFGPlusPlus({hyper})\n"
    'samples = hasten.diffusion.sample(denoiser.given(labels), (16, 2), "ddim", steps=20, guidance=guidance)',
)


@guidance(CFG_CARD)
@dataclass(frozen=True)
class CFG(Guidance):
    """Classifier-free guidance, `eps = eps_u + w (eps_c - eps_u)`, the same in clean data and every other prediction.

    Args:
        w: guidance scale; 0 is unconditional, 1 conditional, above 1 extrapolates.

    Cost: two evaluations. Source: Ho & Salimans (2022), arXiv 2207.12598.
    """

    w: float = 7.5

    def __post_init__(self) -> None:
        check.real("w", self.w)

    def guide(self, look: Look) -> Split:
        conditional, unconditional = look.both()
        return unconditional.towards(conditional, self.w)


@guidance(CFGPP_CARD)
@dataclass(frozen=True)
class CFGPlusPlus(Guidance):
    """CFG++: the clean data of `eps_u + lam (eps_c - eps_u)`, noised with `eps_u`.

    On DDIM, `x_t = alpha_t x_0 + sigma_t eps_u`. Any other solver begins its step at `alpha_s x_0 + sigma_s eps_u`, the
    state at the same noise level that the pair describes. The pull towards the condition is added once per step, not
    in proportion to the step's length: more steps guide more.

    Args:
        lam: guidance scale in [0, 1], 0 is unconditional; 0.2, 0.4, 0.6, 0.8, 1 do about what CFG does at 2, 5, 7.5,
            9, 12.5. Values outside the interval are taken with a warning.

    Cost: two evaluations, as CFG. Source: Chung et al. (2024), arXiv 2406.08070.
    """

    renoises: ClassVar[bool] = True
    lam: float = 0.6

    def __post_init__(self) -> None:
        lam: Any = check.real("lam", self.lam)
        if not 0.0 <= lam <= 1.0:
            warnings.warn(
                f"lam={lam:g} lies outside [0, 1], where CFG++ extrapolates and leaves the data as CFG does; "
                "lam=1 does about what CFG does at w=12.5",
                stacklevel=3,
            )

    def guide(self, look: Look) -> Split:
        conditional, unconditional = look.both()
        return Split(unconditional.towards(conditional, self.lam).x0, unconditional.eps)
