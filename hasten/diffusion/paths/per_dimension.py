"""The general solvers on a path that noises every frequency at its own pace."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Denoises
from hasten.diffusion.base import Row, Sampler, Step, sampler
from hasten.diffusion.paths.shortest_path import ShortestPathSchedule
from hasten.diffusion.samplers.ddim import DDIM
from hasten.diffusion.samplers.dpm_solver import DPMSolver
from hasten.numerics.frequency_schedule import FrequencySchedule
from hasten.numerics.noise import Schedule
from hasten.numerics.time_grid import Grid

CARD = Card(
    name="per-dimension",
    family="diffusion",
    title="Image generation with shortest path diffusion",
    authors="Das, Fotiadis, Batra, Nabiei, Liao, Vakili, Shiu & Bernacchia",
    year=2023,
    arxiv="2306.00501",
    paper_id=344,
    summary="Runs DDIM, DEIS or a multistep DPM-Solver with other coefficients for every frequency of an image.",
    cost="One evaluation and three Fourier transforms per step; the base solver's stored outputs, as spectra.",
    when="For a model trained on the shortest path, in fewer steps than ancestral sampling needs.",
    kinds=("sample",),
    needs=("spectrum",),
    use=(
        "from hasten.diffusion import Denoiser, PerDimension, ShortestPathSchedule\n"
        "path = ShortestPathSchedule.power_law(8)\n"
        "network = path.gaussian_eps  # trained on path.noisy(images, eps, t)\n"
        "model = Denoiser(network, path.clock)\n"
        "samples = hasten.diffusion.sample(model, (16, 1, 8, 8), PerDimension(path=path), steps=12)"
    ),
)


class SpectralRow(NamedTuple):
    """A row of a plan with one coefficient per frequency; `levels` are alpha and sigma where clean data are asked."""

    t: float
    scale: Tensor
    weights: tuple[Tensor, ...]
    levels: tuple[Tensor, Tensor] | None


@sampler(CARD)
@dataclass(frozen=True)
class PerDimension(Sampler):
    """A general solver on a schedule with tensor-valued signal and noise levels, one per frequency.

    The probability-flow ODE of every frequency is that of an ordinary schedule of its own, and all are driven by the
    same evaluations: the base solver's plan is made for each frequency, and a step combines spectra,
    `X_k <- scale_k X_k + sum_j weights_kj M_kj`.

    Args:
        base: what solves: `DDIM`, `DEIS`, or a `DPMSolver` of several steps. Solvers of several stages per step
            evaluate at times that differ between frequencies, and are refused.
        path: the schedule that the model was trained on; its denoiser predicts `eps` and has `path.clock`.
        start, end: times between which the grid goes; 1 and 0 themselves hold no signal, or no noise.
        grid, steps: see `Sampler`.

    Cost: one evaluation and three Fourier transforms per step. Source: the schedule, Das et al. (2023), arXiv
    2306.00501; the solvers, their own.
    """

    base: Sampler = field(default_factory=lambda: DPMSolver(2, "multistep"))
    path: ShortestPathSchedule = field(default_factory=lambda: ShortestPathSchedule.power_law(8))
    start: float = 0.999
    end: float = 1e-3
    grid: str | Sequence[float] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.path, ShortestPathSchedule):
            raise InputError(f"path must be a ShortestPathSchedule, got {self.path!r}")
        if isinstance(self.base, DDIM) and self.base.eta == 0.0:
            object.__setattr__(self, "base", DPMSolver(1))
        if not isinstance(self.base, Sampler) or type(self.base).advance is not Sampler.advance:
            raise InputError(
                f"base must be DDIM (eta=0), DEIS or a DPM-Solver, got {self.base!r}; for ancestral sampling take "
                "ShortestPathSampler"
            )

    def times(self, schedule: Schedule, nfe: int | None) -> Grid:
        return super().times(replace(schedule, T=self.start, t_min=self.end), nfe)

    def plan(self, schedule: Schedule, times: Grid) -> list[Step]:
        powers, places = torch.tensor(self.path.spectrum, dtype=torch.float64).unique(return_inverse=True)
        own = [FrequencySchedule(power, T=times[0], t_min=times[-1]) for power in powers.tolist()]
        plans = [self.base.plan(each, times) for each in own]
        clean = getattr(self.base, "predict", "eps") == "x0"

        def spread(values: Sequence[float]) -> Tensor:
            return torch.tensor(values, dtype=torch.float64)[places]

        def merged(rows: Sequence[Row]) -> SpectralRow:
            t = rows[0].t
            if any(abs(row.t - t) > 1e-9 for row in rows):
                raise InputError(
                    f"{self.base.card.name} evaluates inside its steps, at times that differ between frequencies; take "
                    'a multistep solver, e.g. DPMSolver(2, "multistep")'
                )
            weights = tuple(spread(column) for column in zip(*(row.weights for row in rows)))
            levels = (spread([each.alpha(t) for each in own]), spread([each.sigma(t) for each in own]))
            return SpectralRow(t, spread([row.scale for row in rows]), weights, levels if clean else None)

        return [tuple(merged(rows) for rows in zip(*steps)) for steps in zip(*plans)]

    def advance(self, denoiser: Denoises, state: Any) -> Tensor:
        u, outputs = state.x, state.outputs
        first = state.plan[state.index][0]
        if u.shape[-2:] != first.scale.shape:
            raise InputError(f"samples must end in the path's {tuple(first.scale.shape)} pixels, got {tuple(u.shape)}")
        begin = torch.fft.fft2(u, norm="ortho")
        for t, scale, weights, levels in state.plan[state.index]:
            told = torch.fft.fft2(denoiser.eps(u, t), norm="ortho")
            if levels is not None:
                alpha, sigma = (level.to(u) for level in levels)
                told = (torch.fft.fft2(u, norm="ortho") - sigma * told) / alpha
            outputs.insert(0, told)
            spectrum = scale.to(u) * begin
            for weight, output in zip(weights, outputs):
                spectrum = spectrum + weight.to(u) * output
            del outputs[len(weights) :]
            u = torch.fft.ifft2(spectrum, norm="ortho").real
        return u
