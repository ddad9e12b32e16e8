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
        eps: the noise that guidance predicts.
    """

    x: Tensor
    t: Tensor
    cond: Tensor
    w: Tensor
    eps: Tensor

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, rows: Tensor) -> States:
        return States(self.x[rows], self.t[rows], self.cond[rows], self.w[rows], self.eps[rows])


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
        x, t, eps = (torch.cat(parts) for parts in zip(*guidance.seen))
        count = len(guidance.seen)
        return States(x, t, cond.repeat(count, *(1,) * (cond.ndim - 1)), guidance.w.repeat(count), eps)

    def at(self, x: Tensor, t: Tensor, cond: Tensor, w: Tensor) -> States:
        """Any states, one per row, such as diffused data. Two evaluations."""
        with torch.no_grad():
            eps = GuidedDenoiser(self.denoiser.given(cond), _Recorder(w.to(x), self.t_range, [])).eps(x, t)
        return States(x, t, cond, w.to(x), eps)


@dataclass(frozen=True, eq=False)
class _Recorder(Guidance):
    """Classifier-free guidance with a scale per sample that keeps states and predictions."""

    remembers: ClassVar[bool] = True
    w: Tensor
    t_range: tuple[float, float] | None
    seen: list[tuple[Tensor, Tensor, Tensor]]

    def guide(self, look: Look) -> Split:
        conditional, unconditional = look.both()
        t = look.times()
        w = self.w if self.t_range is None else torch.where(inside(t, self.t_range), self.w, 1.0)
        found = unconditional.towards(conditional, column(w, look.x))
        self.seen.append((look.x, t, found.eps))
        return found


def inside(t: Tensor, interval: tuple[float, float]) -> Tensor:
    return (t >= interval[0]) & (t <= interval[1])
