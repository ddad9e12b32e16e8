"""Picard consistency: a network fine-tuned so that Picard iterations arrive sooner, and switched off for the last."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card, Choice
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Sampling
from hasten.diffusion.base import sampler, solving
from hasten.diffusion.parallel.paradigms import ParaDiGMS, Stage, WindowState
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.lora import LoRA

CARD = Card(
    name="pcm",
    family="diffusion",
    title="PCM : Picard Consistency Model for Fast Parallel Sampling of Diffusion Models",
    authors="So et al.",
    year=2025,
    arxiv="2503.19731",
    paper_id=88,
    summary="Fine-tunes the network to jump from any Picard iterate to the last; the final iterations are its own.",
    cost="Training on stored trajectories; then fewer rounds of as many evaluations as ParaDiGMS makes.",
    when="When one model is sampled in parallel so often that training for it once pays.",
    kinds=("sample",),
    needs=("trajectories",),
    search_space={"switch": Choice(1, 2, 4)},
    use=(
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.layer = torch.nn.Linear(3, 2)\n"
        "    def forward(self, x, t):\n"
        "        return self.layer(torch.cat((x, t[:, None]), 1))\n"
        "denoiser = hasten.diffusion.Denoiser(Net(), hasten.diffusion.VPLinear())\n"
        "model = hasten.diffusion.PicardConsistency(denoiser, steps=20)\n"
        "model.fit(torch.randn(64, 2), iterations=20)\n"
        'samples = hasten.diffusion.sample(denoiser, (16, 2), "pcm", steps=20, model=model{hyper})'
    ),
)


class Trajectories(NamedTuple):
    """What Picard iterations make of start noise.

    Attributes:
        iterates: states at all grid points, of iterations 0 (noise everywhere) and on, each (points, batch, ...).
        fixed: the sequential sampler's states, (points, batch, ...).
    """

    iterates: list[Tensor]
    fixed: Tensor


class PicardConsistency:
    """Training of a network whose Picard map jumps to the fixed point.

    With `Phi(X)[j+1] = X[0] + sum_{i<=j} (step(X[i], t_i) - X[i])` on the whole trajectory, the base network's
    iterates `X^0, X^1, ...` and its fixed point `X*`, a training step draws k and lowers the mean over the grid of
    `|Phi_theta(X^k) - X*|^2`; samplers use an exponential average of theta.

    Args:
        denoiser: the trained model; its network is a `torch.nn.Module`, which stays as it is.
        steps: steps of the sampler that is to be accelerated.
        rank: train low-rank adapters of this rank, mixed with the base network in the space of weights; None trains a
            copy of the network, mixed in the space of outputs.
        sampler: the parallel sampler: its base and grid.
        iterates: K, Picard iterates to train from.
        lr: of Adam.
        ema_decay: of the average of theta, in [0, 1).
        last_weight: weight of the last grid point, the sample, relative to the others.
        generator: source of all randomness; torch's global one if not given.

    Cost: a training step evaluates one Picard iteration of a batch with its gradient.
    Source: So et al. (2025), arXiv 2503.19731.
    """

    def __init__(
        self,
        denoiser: Denoiser,
        steps: int,
        *,
        rank: int | None = 8,
        sampler: ParaDiGMS | None = None,
        iterates: int = 8,
        lr: float = 1e-3,
        ema_decay: float = 0.99,
        last_weight: float = 1.0,
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(denoiser.fn, nn.Module):
            raise InputError(f"denoiser must hold a torch.nn.Module to fine-tune, got {denoiser.fn!r}")
        self.denoiser = denoiser
        self.steps = check.integer("steps", steps, 1)
        self.iterates = check.integer("iterates", iterates, 1)
        self.ema_decay = check.fraction("ema_decay", ema_decay)
        self.last_weight = check.positive("last_weight", last_weight)
        self.generator = generator or torch.default_generator
        self.sampler = sampler or ParaDiGMS()
        if self.sampler.base == "ddpm":
            raise InputError("the sampler must be deterministic; use base='ddim' or 'dpm-solver-2'")
        self.student, self.average = (self._correction(denoiser.fn, rank) for _ in range(2))
        self.average.load_state_dict(self.student.state_dict())
        self.average.requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.student.parameters(), lr=check.positive("lr", lr))
        self._taken = 0

    def _correction(self, network: nn.Module, rank: int | None) -> nn.Module:
        if rank is not None:
            return LoRA(network, rank=rank, scale=0.0, generator=self.generator).attach()
        return copy.deepcopy(network).requires_grad_(True)

    def detach(self) -> None:
        """Take adapters off the network, which is then as it was before; samplers of this object stop working."""
        for correction in (self.average, self.student):
            if isinstance(correction, LoRA):
                correction.detach()

    def record(self, noise: Tensor) -> Trajectories:
        """Iterates and fixed point of start noise (batch, ...)."""
        stages, points = self._stages(noise)
        x = noise.expand(points, *noise.shape)
        iterates, fixed = [x], [noise]
        with torch.no_grad():
            for _ in range(self.iterates - 1):
                x = torch.cat((noise[None], self.sampler.picard(self.denoiser, x[:-1], stages, slice(0, points - 1))))
                iterates.append(x)
            for j in range(points - 1):
                fixed.append(self.sampler.base_steps(self.denoiser, fixed[-1][None], stages, slice(j, j + 1))[0])
        return Trajectories(iterates, torch.stack(fixed))

    def train_step(self, data: Trajectories, batch: int = 64) -> float:
        """One step of Adam on `batch` trajectories from a random iterate; returns the loss."""
        k = self._integers(len(data.iterates), 1)[0]
        count, cond = data.fixed.shape[1], self.denoiser.cond
        rows = self._integers(count, min(check.integer("batch", batch, 1), count)).to(data.fixed.device)
        paired = isinstance(cond, Tensor) and cond.ndim > 0 and len(cond) == count
        base = self.denoiser.given(cond[rows]) if paired else self.denoiser
        x, goal = data.iterates[int(k)][:, rows], data.fixed[1:, rows]
        stages, points = self._stages(x[0])
        with torch.enable_grad():
            tuned: Any = Switched(base, self.student, 1.0)
            found = self.sampler.picard(tuned, x[:-1], stages, slice(0, points - 1))
            errors = (found - goal).square().flatten(1).mean(1)
            loss = (errors.sum() + (self.last_weight - 1.0) * errors[-1]) / (len(errors) + self.last_weight - 1.0)
            self.optimizer.zero_grad()
            loss.backward()
        self.optimizer.step()
        self._taken += 1
        decay = min(self.ema_decay, self._taken / (self._taken + 9.0))
        with torch.no_grad():
            for mean, value in zip(self.average.parameters(), self.student.parameters()):
                mean.lerp_(value, 1.0 - decay)
        return float(loss.detach())

    def fit(self, noise: Tensor, iterations: int = 1000, batch: int = 64) -> list[float]:
        """Record the trajectories of start noise and take training steps on them; returns the losses."""
        check.integer("iterations", iterations, 1)
        data = self.record(noise)
        return [self.train_step(data, batch) for _ in range(iterations)]

    def _stages(self, noise: Tensor) -> tuple[Sequence[Stage], int]:
        made = replace(self.sampler, steps=self.steps).open(noise, self.denoiser.schedule, None)
        return made.stages, len(made.variance) + 1

    def _integers(self, high: int, count: int) -> Tensor:
        return torch.randint(high, (count,), generator=self.generator, device=self.generator.device)


class Switched:
    """A denoiser whose network is `share` of the fine-tuned one and the rest of the base one."""

    def __init__(self, base: Any, correction: nn.Module, share: float) -> None:
        self.base, self.correction, self.share = base, correction, share
        self.evaluations = 1 if isinstance(correction, LoRA) or share == 1.0 else 2

    def eps(self, x: Tensor, t: Any) -> Tensor:
        """The noise in x at time t; one evaluation, or two where outputs are mixed."""
        if isinstance(self.correction, LoRA):
            self.correction.scale = self.share
            try:
                return self.base.eps(x, t)
            finally:
                self.correction.scale = 0.0
        tuned = copy.copy(self.base)
        tuned.fn = self.correction
        if self.share == 1.0:
            return tuned.eps(x, t)
        return self.share * tuned.eps(x, t) + (1.0 - self.share) * self.base.eps(x, t)


@sampler(CARD)
@dataclass(frozen=True)
class PCM(ParaDiGMS):
    """ParaDiGMS whose first rounds use a fine-tuned network and whose last rounds are the base network's own.

    Round k uses `share(k)` of the fine-tuned network: 1 (`decay="step"`) or `1 - k/switch` (`"linear"`) in the first
    `switch` rounds, then 0. Only rounds with share 0 make states final, so the result is the base sampler's, to `tol`.

    Args:
        model: the trained `PicardConsistency`.
        switch: rounds with the fine-tuned network; 0 is ParaDiGMS, None never switches, and the result is then the
            fine-tuned network's own.
        decay: `step` or `linear`.
        window: points evaluated at once; training is for the whole trajectory.
        base, tol, max_iter, grid, steps: see `ParaDiGMS`; base and grid as in training.

    Cost: as ParaDiGMS, in fewer rounds; twice in rounds that mix outputs. Source: So et al. (2025), arXiv 2503.19731.
    """

    model: PicardConsistency | None = None
    switch: int | None = 2
    decay: str = "step"
    window: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        check.one_of("decay", self.decay, ("step", "linear"))
        if self.switch is not None:
            check.integer("switch", self.switch, 0)

    def share(self, k: int) -> float:
        """Share of the fine-tuned network in round k, from 0."""
        if self.switch is None:
            return 1.0
        if k >= self.switch:
            return 0.0
        return 1.0 if self.decay == "step" else 1.0 - k / self.switch

    def init(self, problem: Sampling, generator: torch.Generator) -> WindowState:
        if self.model is None and self.switch != 0:
            raise InputError("pcm needs model=PicardConsistency(denoiser, steps), trained by its fit")
        network = getattr(problem.denoiser, "fn", None)
        if self.model is not None and network is not self.model.denoiser.fn:
            raise InputError("the denoiser's network is not the one that model was made for; pass the denoiser itself")
        return super().init(problem, generator)

    def step(self, problem: Sampling, state: WindowState) -> WindowState:
        share, points = self.share(state.index), len(state.slots) - 1
        if self.model is None or share == 0.0:
            return self.round(problem.denoiser, state)
        tuned: Any = Switched(problem.denoiser, self.model.average, share)
        if self.switch is None:
            return self.round(tuned, state)
        cost = points * self.evaluations * tuned.evaluations
        if state.left is not None:
            if state.left - cost < len(state.variance) * self.evaluations:
                return self.round(problem.denoiser, state)
            state.left -= cost
        state.index += 1
        with solving(lambda: f"round {state.index}, steps 1 to {points}"):
            new = self.picard(tuned, state.slots[:-1], state.stages, slice(0, points), state.noise)
        state.slots = torch.cat((state.slots[:1], new))
        return state
