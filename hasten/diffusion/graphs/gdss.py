"""GDSS: graphs from a pair of scores, by the S4 solver or by predictor and corrector."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any, ClassVar

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import InputError
from hasten.core.registry import entry, register
from hasten.diffusion.base import solving
from hasten.diffusion.graphs.base import Draw, GraphDenoiser, GraphNoise, Graphs, GraphSDE, Pair, present
from hasten.numerics import time_grid
from hasten.numerics.noise import Schedule

USE = (
    "from hasten.numerics.gaussian_graphs import GaussianGraphs\n"
    "sde = hasten.diffusion.GraphSDE()\n"
    "exact = GaussianGraphs(nodes=5, features=2)  # in place of a trained network\n"
    'denoiser = hasten.diffusion.GraphDenoiser(exact.network(sde.features, sde.adjacency), sde, "score")\n'
    "mask = torch.ones(16, 5)\n"
    'x, adj, _ = hasten.diffusion.sample_graphs(denoiser, mask, 2, "{name}", steps=20{{hyper}})'
)


def _card(name: str, summary: str, cost: str, when: str) -> Card:
    return Card(
        name=name,
        family="diffusion",
        title="Score-based Generative Modeling of Graphs via the System of Stochastic Differential Equations",
        authors="Jo, Lee & Hwang",
        year=2022,
        arxiv="2202.02514",
        paper_id=443,
        summary=summary,
        cost=cost,
        when=when,
        kinds=("sample",),
        needs=("graphs",),
        search_space={"snr": LogReal(0.01, 0.4), "scale_eps": Choice(0.5, 0.7, 1.0)},
        use=USE.format(name=name),
    )


S4_CARD = _card(
    "gdss-s4",
    "Corrects and predicts node features and adjacency from one evaluation of the scores, by operator splitting.",
    "One evaluation of both scores per step, half of a predictor with corrector.",
    "To sample graphs whose features and edges depend on each other, where the scores are dear.",
)
PC_CARD = _card(
    "gdss-pc",
    "A Langevin corrector and an Euler predictor for node features and adjacency, each with its own scores.",
    "Two evaluations of both scores per step.",
    "As the baseline of graph sampling, or with many steps.",
)


@dataclass(frozen=True)
class GraphSampler(ABC):
    """Base of the samplers of graphs; see the subclasses.

    Args:
        snr: signal-to-noise ratio of the corrector, which sets its step: `2 (1 - beta dt) (snr |z|/|s|)^2`, with the
            mean norms of noise and score over the batch. So samples of a batch are not quite independent.
        scale_eps: factor of the corrector's noise.
        eps: where the grid ends; the process's t_min if None.
        grid: kind of time grid, in the adjacency's schedule, or the times themselves, decreasing.
    """

    card: ClassVar[Card]
    snr: float = 0.1
    scale_eps: float = 1.0
    eps: float | None = None
    grid: str | Sequence[float] = field(default="uniform", kw_only=True)

    def __post_init__(self) -> None:
        check.nonnegative("snr", self.snr)
        check.nonnegative("scale_eps", self.scale_eps)
        if self.eps is not None:
            check.positive("eps", self.eps)
        if isinstance(self.grid, str):
            check.one_of("grid", self.grid, tuple(time_grid.KINDS))
        else:
            object.__setattr__(self, "grid", tuple(float(t) for t in self.grid))

    def times(self, sde: GraphSDE, steps: int) -> time_grid.Grid:
        """The times between which the steps go, from noise to data."""
        if not isinstance(self.grid, str):
            return time_grid.checked(sde.adjacency, self.grid)
        end = sde.t_min if self.eps is None else check.real("eps", self.eps, 0.0, sde.adjacency.T, open_high=True)
        return time_grid.make(replace(sde.adjacency, t_min=end), steps, self.grid)

    @abstractmethod
    def step(self, denoiser: GraphDenoiser, state: Graphs, t: float, s: float, draw: Draw) -> tuple[Graphs, Graphs]:
        """From time t to the earlier time s; the state, and the same without the step's last noise."""

    def correct(
        self, schedules: Sequence[Schedule], state: Graphs, scores: Pair, noise: Pair, t: float, s: float
    ) -> Graphs:
        """One step of Langevin dynamics: `v + delta score + sqrt(2 delta) scale_eps z`."""
        parts = []
        for schedule, v, score, z in zip(schedules, state, scores, noise):
            size = score.flatten(1).norm(dim=1).mean()
            ratio = torch.where(size > 0, z.flatten(1).norm(dim=1).mean() / size, 0.0)
            delta = 2.0 * max(0.0, 1.0 - schedule.beta(t) * (t - s)) * (self.snr * ratio) ** 2
            parts.append(v + delta * score + (2.0 * delta).sqrt() * self.scale_eps * z)
        return Graphs(parts[0], parts[1], state.mask)


@register(S4_CARD)
@dataclass(frozen=True)
class S4Solver(GraphSampler):
    """The S4 solver: symmetric splitting with a corrector, all from one evaluation of the scores.

    A step from t to s, m half way, with the scores at t: (1) `v <- v + delta score + sqrt(2 delta) scale_eps z`;
    (2) transition of the linear part from t to m, `v <- (alpha_m/alpha_t) v + sigma_t sqrt(1 - e^{-2h}) z`,
    `h = lam_m - lam_t`; (3) `v <- v + g^2(t) (t - s) score`; (4) as (2) from m to s.

    Args:
        kernel: noise of the transitions. `forward`, as published, adds what the forward process adds between the two
            times; `reverse` adds what the reverse process does, `alpha_m/alpha_t` times as much, which is exact and
            pays on variance-preserving schedules with few steps. Without scaling of the signal both are the same.
        snr, scale_eps, eps, grid: see `GraphSampler`.

    Cost: one evaluation of both scores per step. Source: Jo, Lee & Hwang (2022), arXiv 2202.02514.
    """

    card: ClassVar[Card] = S4_CARD
    kernel: str = "forward"

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("kernel", self.kernel, ("forward", "reverse"))

    def step(self, denoiser: GraphDenoiser, state: Graphs, t: float, s: float, draw: Draw) -> tuple[Graphs, Graphs]:
        schedules = denoiser.sde.schedules
        middle = 0.5 * (t + s)
        scores = denoiser.scores(state, t)
        state = self.correct(schedules, state, scores, draw(state), t, s)
        state = self.transition(schedules, state, t, middle, draw)[0]
        x, adj = (v + schedule.diffusion2(t) * (t - s) * score for schedule, v, score in zip(schedules, state, scores))
        return self.transition(schedules, Graphs(x, adj, state.mask), middle, s, draw)

    def transition(
        self, schedules: Sequence[Schedule], state: Graphs, t: float, s: float, draw: Draw
    ) -> tuple[Graphs, Graphs]:
        """The linear part of the reverse process from t to s < t: the state, and its mean."""
        noise = draw(state)
        means, ends = [], []
        for schedule, v, z in zip(schedules, state, noise):
            growth = schedule.alpha(s) / schedule.alpha(t)
            fresh = schedule.sigma(t) * math.sqrt(-math.expm1(2.0 * (schedule.lam(t) - schedule.lam(s))))
            means.append(growth * v)
            ends.append(means[-1] + fresh * (growth if self.kernel == "reverse" else 1.0) * z)
        return Graphs(ends[0], ends[1], state.mask), Graphs(means[0], means[1], state.mask)


@register(PC_CARD)
@dataclass(frozen=True)
class PredictorCorrector(GraphSampler):
    """Predictor and corrector: a Langevin step, then an Euler-Maruyama step of the reverse process.

    From t to s: `v <- v + delta score + sqrt(2 delta) scale_eps z`; new scores;
    `v <- v - (f v - g^2 score) (t - s) + g sqrt(t - s) z`, f and g^2 the drift and squared diffusion at t.

    Args:
        snr, scale_eps, eps, grid: see `GraphSampler`.

    Cost: two evaluations of both scores per step. Source: Song et al. (2020), arXiv 2011.13456; for graphs, Jo, Lee &
    Hwang (2022), arXiv 2202.02514.
    """

    card: ClassVar[Card] = PC_CARD

    def step(self, denoiser: GraphDenoiser, state: Graphs, t: float, s: float, draw: Draw) -> tuple[Graphs, Graphs]:
        schedules = denoiser.sde.schedules
        state = self.correct(schedules, state, denoiser.scores(state, t), draw(state), t, s)
        scores = denoiser.scores(state, t)
        noise = draw(state)
        means, ends = [], []
        for schedule, v, score, z in zip(schedules, state, scores, noise):
            g2 = schedule.diffusion2(t)
            means.append(v - (schedule.dlog_alpha(t) * v - g2 * score) * (t - s))
            ends.append(means[-1] + math.sqrt(g2 * (t - s)) * z)
        return Graphs(ends[0], ends[1], state.mask), Graphs(means[0], means[1], state.mask)


def sample_graphs(
    denoiser: GraphDenoiser,
    mask: Tensor,
    features: int,
    sampler: str | GraphSampler = "gdss-s4",
    steps: int = 1000,
    *,
    noise: Draw | None = None,
    generator: torch.Generator | None = None,
    callback: Callable[[int, Graphs], Any] | None = None,
    costs: dict[str, int] | None = None,
    dtype: torch.dtype = torch.float32,
    **hyper: Any,
) -> Graphs:
    """Draw graphs from a trained pair of scores.

    Args:
        denoiser: the network with its process.
        mask: which nodes each graph has, (batch, n); its device is that of the graphs.
        features: features per node.
        sampler: `gdss-s4`, `gdss-pc`, or one of the classes.
        steps: steps of the grid.
        noise: source of all noise instead of `generator`: a function of graphs that returns a pair like x and adj.
        generator: source of all randomness; torch's global one if not given.
        callback: called with the number of steps done and the graphs after every step.
        costs: filled with `nfe`, evaluations of the pair of scores.
        dtype: of the graphs.
        hyper: the sampler's own arguments, e.g. `snr=0.2`.

    Returns:
        Features and adjacency (edge weights, to be rounded) without the last step's noise.

    Raises:
        InputError: an argument is out of range, or the network returns another shape.
        DivergedError: the network returned nan or infinity; the message says at which step.
    """
    mask = present(mask)
    check.integer("features", features, 1)
    check.integer("steps", steps, 1)
    if isinstance(sampler, str):
        made: Any = entry(sampler if "." in sampler else f"diffusion.{sampler}").build(**hyper)
    elif hyper:
        raise InputError(f"{', '.join(hyper)}: set these on the sampler that you pass")
    else:
        made = sampler
    if not isinstance(made, GraphSampler):
        raise InputError(f"sampler must be one of graphs (gdss-s4, gdss-pc), got {sampler!r}")
    calls: list[int] = []
    counted = denoiser.counted(calls.append)
    draw = noise or GraphNoise(generator or torch.default_generator)
    shape = (len(mask), mask.shape[1])
    x, adj = (torch.zeros(*shape, size, dtype=dtype, device=mask.device) for size in (features, shape[1]))
    x, adj = draw(Graphs(x, adj, mask))
    state = mean = Graphs(x * denoiser.sde.features.noise_scale, adj * denoiser.sde.adjacency.noise_scale, mask)
    times = made.times(denoiser.sde, steps)
    for index, (t, s) in enumerate(pairwise(times), 1):
        with solving(lambda index=index: f"step {index} of {len(times) - 1}"):
            state, mean = made.step(counted, state, t, s, draw)
        if callback is not None:
            callback(index, state)
    if costs is not None:
        costs.update(nfe=sum(calls))
    return mean
