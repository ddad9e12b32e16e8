"""MDLM, the ancestral sampler of masked diffusion, the frame that its remasking relatives share, and `unmask`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Real
from hasten.core.errors import InputError
from hasten.core.kinds.unmask import Unmasking, Unmasks
from hasten.core.method import Method
from hasten.core.registry import entry
from hasten.diffusion.base import sampler
from hasten.numerics.masked_denoiser import nucleus

CARD = Card(
    name="mdlm",
    family="diffusion",
    title="Simple and Effective Masked Diffusion Language Models",
    authors="Sahoo, Arriola, Schiff, Gokaslan, Marroquin, Chiu, Rush & Kuleshov",
    year=2024,
    arxiv="2406.07524",
    summary="Reveals each masked token once, at a random time, from the network's law; revealed tokens stay.",
    cost="One evaluation per step, none where the step before changed nothing.",
    when="As the baseline of masked models, and where the steps suffice to reveal about one token each.",
    kinds=("unmask",),
    search_space={"nucleus_p": Real(0.8, 1.0)},
    use='tokens = hasten.diffusion.unmask(masked_denoiser, (16, 32), sampler="mdlm", steps=64{hyper})',
)
T_MIN = 1e-5


class Move(NamedTuple):
    """One step from t to s: share of tokens that are revealed before and after it, probability of remasking."""

    t: float
    alpha_t: float
    alpha_s: float
    sigma: float

    @property
    def sigma_max(self) -> float:
        """The largest probability of remasking that leaves the law of the noisy sequences as it is."""
        return min(1.0, (1.0 - self.alpha_s) / self.alpha_t) if self.alpha_t > 0.0 else 1.0

    def reveal(self, sigma: Any) -> Any:
        """Probability that a masked token is revealed, when revealed ones are masked with probability `sigma`."""
        return (self.alpha_s - (1.0 - sigma) * self.alpha_t) / (1.0 - self.alpha_t)


@dataclass
class MaskedState:
    """A batch of sequences under way.

    Attributes:
        x: tokens, the mask where hidden.
        plan: the steps.
        free: positions that were masked at the start.
        generator: source of all randomness.
        index: steps done.
        law: the network's last output, while it is still that of `x`.
        trust: probability that each token had when it was revealed, infinite where hidden or given.
    """

    x: Tensor
    plan: Sequence[Move]
    free: Tensor
    generator: torch.Generator
    trust: Tensor
    index: int = 0
    law: Tensor | None = None


@sampler(CARD)
@dataclass(frozen=True)
class MDLM(Method[Unmasking, MaskedState]):
    """Ancestral sampling of a masked diffusion.

    At time t a share `alpha_t = 1 - t` of the tokens is revealed. The step from t to s reveals a masked token with
    probability `(alpha_s - alpha_t)/(1 - alpha_t)`, drawn from the network's law; what is revealed stays. Masks that
    the last step leaves take their likeliest token.

    Args:
        nucleus_p: draw among the likeliest tokens that have this probability together; 1 takes the whole law.
        steps: steps from t = 1 to 1e-5; None plans with the evaluations that the problem allows.

    Cost: one evaluation per step; none where the network does not know the time and the step before changed nothing.
    Source: Sahoo et al. (2024), arXiv 2406.07524.
    """

    nucleus_p: float = field(default=1.0, kw_only=True)
    steps: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check.real("nucleus_p", self.nucleus_p, 0.0, 1.0, open_low=True)
        if self.steps is not None:
            check.integer("steps", self.steps, 1)

    def plan(self, steps: int) -> list[Move]:
        """The moves between `steps + 1` times, uniform from 1 to 1e-5."""
        times = torch.linspace(1.0, T_MIN, steps + 1, dtype=torch.float64).tolist()
        return [self.move(t, s) for t, s in pairwise(times)]

    def move(self, t: float, s: float) -> Move:
        """The step from t to s."""
        return Move(t, 1.0 - t, 1.0 - s, 0.0)

    def remask(self, move: Move, state: MaskedState) -> float | Tensor:
        """Probability that a revealed token is masked again: one number, or one per token."""
        return move.sigma

    def init(self, problem: Unmasking, generator: torch.Generator) -> MaskedState:
        steps = self.steps or problem.horizon
        if steps is None:
            raise InputError(f"{self.card.name}: give steps, or nfe (the evaluations to plan with)")
        x = problem.start.clone()
        trust = torch.full(x.shape, torch.inf, dtype=torch.float64, device=x.device)
        return MaskedState(x, self.plan(steps), x == problem.denoiser.mask, generator, trust)

    def step(self, problem: Unmasking, state: MaskedState) -> MaskedState:
        move, mask, x = state.plan[state.index], problem.denoiser.mask, state.x
        if state.law is None:
            state.law = nucleus(problem.denoiser.probabilities(x, move.t), self.nucleus_p)
        law, hidden = state.law, x == mask
        sigma = self.remask(move, state)
        chance = uniform(x, state.generator)
        hide = ~hidden & state.free & (chance < sigma)
        show = hidden & (chance < move.reveal(sigma))
        state.x = x.masked_fill(hide, mask)
        if bool(show.any()):
            state.x[show] = categorical(law[show], state.generator).to(x.dtype)
        state.trust[hide] = torch.inf
        state.trust[show] = law[show].gather(1, state.x[show].long()[:, None])[:, 0]
        state.index += 1
        if self.done(state):
            state.x = torch.where(state.x == mask, law.argmax(-1).to(x.dtype), state.x)
        elif problem.denoiser.timed or bool((hide | show).any()):
            state.law = None
        return state

    def done(self, state: MaskedState) -> bool:
        return state.index >= len(state.plan)


def uniform(like: Tensor, generator: torch.Generator) -> Tensor:
    """Uniform numbers in [0, 1), float64, of the shape and on the device of `like`."""
    drawn = torch.rand(like.shape, generator=generator, dtype=torch.float64, device=generator.device)
    return drawn.to(like.device)


def categorical(law: Tensor, generator: torch.Generator) -> Tensor:
    """One draw per row of `law` (rows, categories), by the Gumbel trick.

    The noise is float64: float32 noise ends early and makes rare tokens rarer than they are.
    """
    times = torch.empty(law.shape, dtype=torch.float64, device=generator.device).exponential_(generator=generator)
    return (law / times.to(law.device)).argmax(-1)


def unmask(
    denoiser: Unmasks,
    shape: Sequence[int] | None = None,
    sampler: str | MDLM = "remdm-cap",
    steps: int | None = None,
    *,
    start: Tensor | None = None,
    nfe: int | None = None,
    generator: torch.Generator | None = None,
    costs: dict[str, int] | None = None,
    device: torch.device | str = "cpu",
    **hyper: Any,
) -> Tensor:
    """Generate sequences with a masked diffusion model.

    Args:
        denoiser: the network with its mask token, e.g. `MaskedDenoiser(net, mask=0)`.
        shape: (batch, length) of sequences to generate from nothing but masks.
        sampler: name of a sampler of masked models, or one.
        steps: steps to take, at most one evaluation each; 128 if neither this nor `nfe` is given.
        start: sequences to complete, instead of `shape`; tokens that are not the mask stay.
        nfe: network evaluations to spend, instead of `steps`.
        generator: source of all randomness; torch's global one if not given.
        costs: filled with `nfe`, the evaluations made.
        device: of the sequences, if `shape` is given.
        hyper: the sampler's own arguments, e.g. `nucleus_p=0.9`.

    Returns:
        Tokens of shape (batch, length), without masks.

    Example:
        >>> tokens = unmask(masked_denoiser, (16, 32), sampler="remdm-cap", steps=64)
    """
    if (shape is None) == (start is None):
        raise InputError("give either shape (of the batch) or start (sequences with masks)")
    if steps is not None and nfe is not None:
        raise InputError(f"give either steps or nfe, got steps={steps} and nfe={nfe}")
    if start is None:
        start = torch.full(tuple(shape or ()), denoiser.mask, device=device)
    if isinstance(sampler, str):
        method = entry(sampler if "." in sampler else f"diffusion.{sampler}").build(**hyper)
    elif hyper:
        raise InputError(f"{', '.join(hyper)}: set these on the sampler that you pass")
    else:
        method = sampler
    if not isinstance(method, MDLM):
        raise InputError(f"{sampler!r} is no sampler of masked models; `hasten list unmask` shows those")
    if steps is not None:
        method = replace(method, steps=steps)
    problem = Unmasking(denoiser, start, metric=lambda x: 0.0)
    problem.horizon = check.integer("nfe", 128 if nfe is None else nfe, 1)
    state = method.init(problem, generator or torch.default_generator)
    while not method.done(state):
        state = method.step(problem, state)
    if costs is not None:
        costs.update(nfe=problem.calls["nfe"])
    return state.x
