"""LinearAG: estimates some of the unconditional predictions from those before, by linear regression."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.diffusion.base import Sampler, sample
from hasten.diffusion.guidance.base import Guidance, Look, Split
from hasten.diffusion.guidance.race import guidance
from hasten.numerics.denoiser import Denoiser

CARD = Card(
    name="linear-ag",
    family="diffusion",
    title="Adaptive Guidance: Training-free Acceleration of Conditional Diffusion Models",
    authors="Castillo, Kohler, Perez, Arnab & Schoenfeld",
    year=2023,
    arxiv="2312.12487",
    paper_id=346,
    summary="Replaces every second unconditional prediction of the first half by a linear function of earlier ones.",
    cost="One evaluation instead of two at the estimated steps; the stored predictions of all steps before.",
    when="With a fixed sampler and number of steps, after a fit on about 200 trajectories.",
    kinds=("sample",),
    needs=("condition", "trajectories"),
    use="labels = torch.arange(16) % 3\n"
    "recording = hasten.diffusion.record_trajectories(denoiser.given(labels), torch.randn(16, 2), steps=10)\n"
    "guidance = hasten.diffusion.LinearAG.fit(recording{hyper})\n"
    'samples = hasten.diffusion.sample(denoiser.given(labels), (16, 2), "ddim", steps=10, guidance=guidance)',
)

Coefficients = tuple[tuple[float, ...], ...]


class Recording(NamedTuple):
    """Trajectories under classifier-free guidance.

    Attributes:
        w: their guidance scale.
        progress: share of the steps done at every evaluation.
        conditional, unconditional: predicted noise of every evaluation, in order, each of shape (batch, ...).
    """

    w: float
    progress: list[float]
    conditional: list[Tensor]
    unconditional: list[Tensor]


@dataclass
class Past:
    """Predictions of a chain so far."""

    conditional: list[Tensor] = field(default_factory=list)
    unconditional: list[Tensor] = field(default_factory=list)


@guidance(CARD)
@dataclass(frozen=True)
class LinearAG(Guidance):
    """Classifier-free guidance with some unconditional predictions estimated.

    Where evaluation i has coefficients, `eps_u(t_i) = sum_{j<=i} b_j eps_c(t_j) + sum_{j<i} c_j eps_u(t_j)`, estimates
    standing in for the predictions that were left out before. `LinearAG.fit` makes the coefficients for one sampler
    and number of steps, and they serve those only. Guided chains feed errors of the estimates back, `w - 1` times as
    large, so the coefficients must be small; see `fit`.

    Args:
        w: guidance scale.
        coefs: per evaluation `(b_0, ..., b_i, c_0, ..., c_{i-1})`, or an empty tuple where the network is asked.
        progress: share of the steps done at every evaluation of the chains of the fit; others are refused.

    Cost: one evaluation at an estimated step, two at the others; predictions of all steps up to the last estimated one.
    Source: Castillo et al. (2023), arXiv 2312.12487.
    """

    remembers: ClassVar[bool] = True
    w: float
    coefs: Coefficients
    progress: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        check.real("w", self.w)
        for i, row in enumerate(self.coefs):
            if len(row) not in (0, 2 * i + 1):
                raise InputError(f"coefs[{i}] must have {2 * i + 1} numbers (or none), got {len(row)}")

    @classmethod
    def fit(cls, recording: Recording, skip: Iterable[int] | None = None, *, rcond: float = 3e-4) -> LinearAG:
        """Coefficients by least squares over all samples and coordinates of recorded trajectories.

        Predictions of neighbouring steps are almost the same, and ordinary least squares (`rcond=1e-12`) balances them
        with coefficients in the thousands: exact along recorded trajectories, but a chain that runs on its own
        estimates diverges.

        Args:
            recording: what `record_trajectories` returns, from about 200 samples.
            skip: evaluations to estimate; every second one of the first half (1, 3, ...) if not given.
            rcond: singular values of the predictions below this share of the largest count as zero, in [0, 1).
        """
        check.fraction("rcond", rcond)
        count = len(recording.conditional)
        chosen = set(range(1, count // 2, 2) if skip is None else skip)
        for i in chosen:
            check.integer("skip", i, 0, count - 1)
        rows: list[tuple[float, ...]] = []
        past = Past()
        for i, (conditional, unconditional) in enumerate(zip(recording.conditional, recording.unconditional)):
            past.conditional.append(conditional)
            row: tuple[float, ...] = ()
            if i in chosen:
                columns = torch.stack([u.flatten().double().cpu() for u in (*past.conditional, *past.unconditional)], 1)
                wanted = unconditional.flatten().double().cpu()
                if len(wanted) < columns.shape[1]:
                    raise InputError(f"{len(wanted)} recorded numbers cannot fit {columns.shape[1]} coefficients")
                row = tuple(
                    torch.linalg.lstsq(columns, wanted[:, None], rcond=rcond, driver="gelsd").solution[:, 0].tolist()
                )
                unconditional = _combined(row, past)
            past.unconditional.append(unconditional)
            rows.append(row)
        return cls(recording.w, tuple(rows), tuple(recording.progress))

    def estimates(self, recording: Recording) -> dict[int, Tensor]:
        """The unconditional noise that would have been estimated along recorded trajectories, by evaluation."""
        past, found = Past(), {}
        for i, (conditional, unconditional) in enumerate(zip(recording.conditional, recording.unconditional)):
            past.conditional.append(conditional)
            if self.coefs[i]:
                unconditional = found[i] = _combined(self.coefs[i], past)
            past.unconditional.append(unconditional)
        return found

    def memory(self) -> Past:
        return Past()

    def guide(self, look: Look) -> Split:
        past: Past = look.memory
        i = len(past.unconditional)
        if i >= len(self.coefs) or (self.progress and abs(look.progress - self.progress[i]) > 1e-9):
            raise InputError(
                f"the coefficients were fitted to chains of {len(self.coefs)} evaluations, this one has other steps; "
                "fit again"
            )
        if self.coefs[i]:
            conditional = look.conditional()
            past.conditional.append(conditional.eps)
            unconditional = conditional.with_eps(look, _combined(self.coefs[i], past))
        else:
            conditional, unconditional = look.both()
            past.conditional.append(conditional.eps)
        past.unconditional.append(unconditional.eps)
        return unconditional.towards(conditional, self.w)


def record_trajectories(
    denoiser: Denoiser, noise: Tensor, w: float = 7.5, steps: int = 50, sampler: str | Sampler = "ddim", **options: Any
) -> Recording:
    """Sample under classifier-free guidance and keep both predictions of every evaluation, for `LinearAG.fit`.

    Args:
        denoiser: the network with its condition.
        noise: start noise at time T, shape (batch, ...).
        w: guidance scale.
        steps, sampler, options: as for `sample`; those with which the fitted guidance will be used.
    """
    seen = Recording(w, [], [], [])
    sample(denoiser, noise=noise, sampler=sampler, steps=steps, guidance=_Recorder(seen), **options)
    return seen


@dataclass(frozen=True)
class _Recorder(Guidance):
    """Classifier-free guidance that keeps what it sees."""

    remembers: ClassVar[bool] = True
    seen: Recording

    def guide(self, look: Look) -> Split:
        conditional, unconditional = look.both()
        self.seen.progress.append(look.progress)
        self.seen.conditional.append(conditional.eps)
        self.seen.unconditional.append(unconditional.eps)
        return unconditional.towards(conditional, self.seen.w)


def _combined(row: tuple[float, ...], past: Past) -> Tensor:
    total = torch.zeros_like(past.conditional[0])
    for weight, output in zip(row, (*past.conditional, *past.unconditional)):
        total.add_(output, alpha=weight)
    return total
