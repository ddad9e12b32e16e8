"""ReMDM: masked diffusion that masks revealed tokens again, so that mistakes can be corrected."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, LogReal, Range, Real
from hasten.core.errors import InputError
from hasten.diffusion.base import sampler
from hasten.diffusion.discrete.masked import MDLM, MaskedState, Move


def _card(name: str, summary: str, when: str, search_space: Mapping[str, Range]) -> Card:
    return Card(
        name=name,
        family="diffusion",
        title="Remasking Discrete Diffusion Models with Inference-Time Scaling",
        authors="Wang, Schiff, Sahoo & Kuleshov",
        year=2025,
        arxiv="2503.00307",
        paper_id=321,
        summary=summary,
        cost="One evaluation per step, none where the step before changed nothing.",
        when=when,
        kinds=("unmask",),
        search_space=search_space,
        use=f'tokens = hasten.diffusion.unmask(masked_denoiser, (16, 32), sampler="{name}", steps=64{{hyper}})',
    )


CAP = _card(
    "remdm-cap",
    "Masks revealed tokens again with one small probability in every step.",
    "With at least as many steps as tokens; the plain choice.",
    {"eta": LogReal(0.005, 0.1)},
)
RESCALE = _card(
    "remdm-rescale",
    "Masks revealed tokens again with a fixed share of the largest probability that is allowed.",
    "With many more steps than tokens.",
    {"eta": LogReal(0.005, 0.2)},
)
CONF = _card(
    "remdm-conf",
    "Masks again first of all the tokens of which the network was least sure when it revealed them.",
    "With fewer steps than tokens, where the other strategies waste the steps.",
    {"nucleus_p": Real(0.8, 1.0)},
)
LOOP = _card(
    "remdm-loop",
    "Drafts the whole sequence quickly, then corrects it at a constant share of masks, then finishes.",
    "With more steps than tokens on text, where a complete draft guides the corrections.",
    {"eta": LogReal(0.005, 0.1), "alpha_on": Real(0.7, 0.95)},
)
FORWARD_BACKWARD = Card(
    name="forward-backward",
    family="diffusion",
    title="A Continuous Time Framework for Discrete Denoising Models",
    authors="Campbell, Benton, De Bortoli, Rainforth, Deligiannidis & Doucet",
    year=2022,
    arxiv="2205.14987",
    summary="Each step is followed by a forward step of noise: revealed tokens are masked at the forward rate.",
    cost="One evaluation per step.",
    when="As the baseline of the remasking samplers.",
    kinds=("unmask",),
    search_space={"nucleus_p": Real(0.8, 1.0)},
    use='tokens = hasten.diffusion.unmask(masked_denoiser, (16, 32), sampler="forward-backward", steps=64{hyper})',
)

STRATEGIES = ("cap", "rescale", "conf", "loop")


@sampler(LOOP, strategy="loop")
@sampler(CONF, strategy="conf")
@sampler(RESCALE, strategy="rescale")
@sampler(CAP, strategy="cap")
@dataclass(frozen=True)
class ReMDM(MDLM):
    """Remasking sampler of a masked diffusion model, for networks trained as for MDLM.

    The step from t to s masks a revealed token with probability sigma and reveals a masked one with probability
    `(alpha_s - (1 - sigma) alpha_t)/(1 - alpha_t)`, which keeps the share of revealed tokens at `alpha_s`. That is
    possible up to `sigma_max = min(1, (1 - alpha_s)/alpha_t)`. With sigma = 0 it is MDLM.

    Args:
        strategy: `cap`: `sigma = min(eta, sigma_max)`. `rescale`: `sigma = eta sigma_max`. `conf`: sigma_max, shared
            out over the positions by a softmax of minus the probability that each token had when it was revealed.
            `loop`: MDLM until t_on, where a share alpha_on is revealed; then `sigma = eta` at this share
            until t_off (eta at most `(1 - alpha_on)/alpha_on`); then MDLM to the end.
        eta: strength of remasking; not used by `conf`.
        t_on, t_off: times between which `loop` corrects, `t_off < t_on`.
        alpha_on: share of revealed tokens meanwhile.
        nucleus_p, steps: see `MDLM`.

    Cost: one evaluation per step. Source: Wang et al. (2025), arXiv 2503.00307.
    """

    strategy: str = "cap"
    eta: float = 0.02
    t_on: float = 0.55
    t_off: float = 0.05
    alpha_on: float = 0.9

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("strategy", self.strategy, STRATEGIES)
        check.real("eta", self.eta, 0.0, 1.0)
        check.real("t_on", self.t_on, 0.0, 1.0, open_low=True, open_high=True)
        check.real("t_off", self.t_off, 0.0, 1.0, open_low=True, open_high=True)
        check.real("alpha_on", self.alpha_on, 0.0, 1.0, open_low=True, open_high=True)
        if self.t_off >= self.t_on:
            raise InputError(f"t_off must be less than t_on, got t_off={self.t_off} and t_on={self.t_on}")

    def move(self, t: float, s: float) -> Move:
        if self.strategy == "loop":
            return self._loop(t, s)
        move = super().move(t, s)
        if self.strategy == "cap":
            return move._replace(sigma=min(self.eta, move.sigma_max))
        return move._replace(sigma=move.sigma_max * (self.eta if self.strategy == "rescale" else 1.0))

    def _loop(self, t: float, s: float) -> Move:
        if t > self.t_on:
            draft = self.alpha_on / (1.0 - self.t_on)
            return Move(t, (1.0 - t) * draft, (1.0 - s) * draft, 0.0)
        if t <= self.t_off:
            rest = (1.0 - self.alpha_on) / self.t_off
            return Move(t, 1.0 - t * rest, 1.0 - s * rest, 0.0)
        move = Move(t, self.alpha_on, self.alpha_on, self.eta)
        return move._replace(sigma=min(self.eta, move.sigma_max))

    def remask(self, move: Move, state: MaskedState) -> float | Tensor:
        return conf_shares(state.trust) * move.sigma if self.strategy == "conf" else move.sigma


def conf_shares(trust: Tensor) -> Tensor:
    """Softmax of minus the trust over the positions; 0 where it is infinite."""
    return torch.nan_to_num((-trust).softmax(-1), nan=0.0)


@sampler(FORWARD_BACKWARD)
@dataclass(frozen=True)
class ForwardBackward(MDLM):
    """Backward steps with a forward step of noise on top, as one remasking step.

    A revealed token is masked with probability `sigma = (alpha_s - alpha_t)/alpha_t`, at most sigma_max.

    Args:
        nucleus_p, steps: see `MDLM`.

    Cost: one evaluation per step. Source: Campbell et al. (2022), arXiv 2205.14987.
    """

    def move(self, t: float, s: float) -> Move:
        move = super().move(t, s)
        rate = (move.alpha_s - move.alpha_t) / move.alpha_t if move.alpha_t > 0.0 else 1.0
        return move._replace(sigma=min(rate, move.sigma_max))
