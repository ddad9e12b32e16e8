"""What guidance predicts at noisy states: the material from which a network learns to act as if guided."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from hasten.diffusion.base import Sampler, sample
from hasten.diffusion.guidance.base import Guidance, GuidedDenoiser, Look, Split, column
from hasten.numerics.denoiser import Denoiser


@dataclass
class States:
    """Noisy states with the answer of classifier-free guidance, one per row.

    Attributes:
        x: states, (n, ...).
        t: their times, (n,).
        cond: their conditions, (n, ...).
        w: guidance scales, (n,).
        output: the guided prediction, of the kind that the network makes (`denoiser.prediction`).
    """

    x: Tensor
    t: Tensor
    cond: Tensor
    w: Tensor
    output: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> States:
        return States(self.x[rows], self.t[rows], self.cond[rows], self.w[rows], self.output[rows])


@dataclass(frozen=True)
class Teacher:
    """Classifier-free guidance of a conditional model, with a scale per sample and within a range of times.

    Args:
        denoiser: the conditional model.
        t_range: times at which there is guidance; None means all.
    """

    denoiser: Denoiser
    t_range: tuple[float, float] | None = None

    def along_chains(self, noise: Tensor, cond: Tensor, w: Tensor, steps: int, sampler: str | Sampler) -> States:
        """The states that guided chains pass through. `2 steps` evaluations per sample."""
        guidance = _Recorder(w.to(noise), self.t_range, [])
        sample(self.denoiser.given(cond), noise=noise, sampler=sampler, steps=steps, guidance=guidance)
        x, t, x0, eps = (torch.cat(parts) for parts in zip(*guidance.seen))
        count = len(guidance.seen)
        conds = cond.repeat(count, *(1,) * (cond.ndim - 1))
        known = GuidedDenoiser(self.denoiser.given(conds), _Known(Split(x0, eps)))
        return States(x, t, conds, guidance.w.repeat(count), output(known, self.denoiser.prediction, x, t))

    def at(self, x: Tensor, t: Tensor, cond: Tensor, w: Tensor) -> States:
        """Any states, one per row, such as diffused data. Two evaluations."""
        guided = GuidedDenoiser(self.denoiser.given(cond), _Recorder(w.to(x), self.t_range, []))
        with torch.no_grad():
            return States(x, t, cond, w.to(x), output(guided, self.denoiser.prediction, x, t))


@dataclass(frozen=True, eq=False)
class _Recorder(Guidance):
    """Classifier-free guidance with a scale per sample that keeps states and predictions."""

    remembers: ClassVar[bool] = True
    w: Tensor
    t_range: tuple[float, float] | None
    seen: list[tuple[Tensor, Tensor, Tensor, Tensor]]

    def guide(self, look: Look) -> Split:
        conditional, unconditional = look.both()
        t = look.times()
        w = self.w if self.t_range is None else torch.where(inside(t, self.t_range), self.w, 1.0)
        found = unconditional.towards(conditional, column(w, look.x))
        self.seen.append((look.x, t, found.x0, found.eps))
        return found


@dataclass(frozen=True, eq=False)
class _Known(Guidance):
    """Guidance whose answer is known already."""

    split: Split

    def guide(self, look: Look) -> Split:
        return self.split


def output(denoiser: Denoiser | GuidedDenoiser, prediction: str, x: Tensor, t: Tensor) -> Tensor:
    """A kind of prediction, by its name."""
    return getattr(denoiser, "eps" if prediction == "epsilon" else prediction)(x, t)


def inside(t: Tensor, interval: tuple[float, float]) -> Tensor:
    """Which times lie in an interval."""
    return (t >= interval[0]) & (t <= interval[1])
