"""Practical plug-and-play: adapters teach an off-the-shelf classifier noisy inputs, one expert per range of times."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import DivergedError, InputError
from hasten.core.registry import register
from hasten.diffusion.guidance.base import column
from hasten.numerics.lora import LoRA
from hasten.numerics.noise import Schedule

CARD = Card(
    name="ppap",
    family="diffusion",
    title="Towards Practical Plug-and-Play Diffusion Models",
    authors="Go, Lee, Kim, Lee, Jeong, Lee & Choi",
    year=2022,
    arxiv="2212.05973",
    paper_id=400,
    summary="Teaches a classifier of clean images noisy ones, by low-rank adapters for each range of times and without "
    "data.",
    cost="One forward and backward pass of the classifier per guided evaluation; once a training of minutes.",
    when="To guide an unconditional model with a network that was trained on clean data.",
    kinds=("sample",),
    needs=("classifier",),
    use="net = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.ReLU(), torch.nn.Linear(16, 3))\n"
    "clean = hasten.diffusion.sample(denoiser, (64, 2), steps=10)\n"
    "experts = hasten.diffusion.MultiExpert(net, denoiser.schedule{hyper}).fit_datafree(clean, iterations=50)\n"
    "guidance = hasten.diffusion.ClassifierGuidance(experts, torch.arange(16) % 3, scale=2.0)\n"
    "samples = hasten.diffusion.sample(denoiser, (16, 2), steps=20, guidance=guidance)",
)


@register(CARD)
class MultiExpert(nn.Module):
    """A network for clean data with low-rank adapters for noisy data, one set for each of several ranges of times.

    The experts divide [0, T] evenly. Expert n is the network with its adapters, trained on the times of its range only.
    Training needs no data: clean samples are drawn from the diffusion model, the network's own answer to them is the
    teacher, and the expert learns to give it from their noised versions. The network itself stays as it is.

    As a module it consists of the adapters alone.

    Args:
        network: off-the-shelf network of clean samples (batch, ...), made of `Linear` and `Conv2d` layers; put in
            evaluation mode.
        schedule: of the diffusion model.
        experts: number of ranges, at least 1.
        rank: of the adapters.
        alpha: numerator of their scaling; None takes `rank`.
        targets: names of the layers to adapt, as for `LoRA`; None adapts all.
        generator: source of the first weights.

    Cost: one pass of the network with adapters per call (one pass per expert where times of several ranges meet).
    Source: Go et al. (2022), arXiv 2212.05973.
    """

    def __init__(
        self,
        network: nn.Module,
        schedule: Schedule,
        experts: int = 5,
        rank: int = 8,
        alpha: float | None = None,
        *,
        targets: str | Sequence[str] | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        check.integer("experts", experts, 1)
        if not isinstance(schedule, Schedule):
            raise InputError(f"schedule must be that of the diffusion model, e.g. denoiser.schedule; got {schedule!r}")
        self.schedule = schedule
        self._network = (network.eval(),)
        self.experts = nn.ModuleList(LoRA(network, targets, rank, alpha, generator=generator) for _ in range(experts))

    def range(self, index: int) -> tuple[float, float]:
        """The times of an expert."""
        count = len(self.experts)
        return self.schedule.T * index / count, self.schedule.T * (index + 1) / count

    def index(self, t: Tensor) -> Tensor:
        """The expert of each time, the lower one where two ranges meet."""
        count = len(self.experts)
        return ((t.double() * count / self.schedule.T).ceil().long() - 1).clamp(0, count - 1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """The network's answer to noisy samples.

        Args:
            x: noisy samples, (batch, ...).
            t: their times, (batch,).
        """
        index = self.index(t)
        used = index.unique().tolist()
        if len(used) == 1:
            return self._answer(used[0], x)
        parts = [(index == n).nonzero()[:, 0] for n in used]
        answers = torch.cat([self._answer(n, x[rows]) for n, rows in zip(used, parts)])
        return answers[torch.cat(parts).argsort()]

    def fit_datafree(
        self,
        clean: Tensor,
        iterations: int = 1000,
        batch: int = 128,
        lr: float = 1e-3,
        *,
        loss: str = "kl",
        tau: float = 0.25,
        generator: torch.Generator | None = None,
    ) -> MultiExpert:
        """Train the experts, one after the other, on samples of the diffusion model.

        The loss is `KL(softmax(teacher(x_0)/tau) || softmax(expert(x_t)))`, with `x_t = alpha x_0 + sigma eps` and t
        uniform in the expert's range, or for networks that are no classifiers the mean square error to the teacher.

        Args:
            clean: samples of the diffusion model, `sample(denoiser, (1000, ...))`.
            iterations: optimizer steps, of all experts together.
            batch: samples per step.
            lr: learning rate of Adam, falling to zero with the cosine.
            loss: `kl` for logits (batch, classes), `mse` for anything else.
            tau: temperature of the teacher; below 1 it sharpens.
            generator: source of batches, times and noise; torch's global one if not given.
        """
        check.integer("iterations", iterations, len(self.experts))
        check.integer("batch", batch, 1)
        check.positive("lr", lr)
        check.positive("tau", tau)
        check.one_of("loss", loss, ("kl", "mse"))
        clean = clean.detach()
        with torch.no_grad():
            teacher = self._network[0](clean)
        if loss == "kl":
            if teacher.ndim != 2:
                raise InputError(f"loss='kl' needs logits (batch, classes), the network gives {tuple(teacher.shape)}")
            teacher = (teacher / tau).softmax(1)
        steps = iterations // len(self.experts)
        for n, expert in enumerate(self.experts):
            low, high = self.range(n)
            low = max(low, self.schedule.t_min)
            optimizer = torch.optim.Adam(expert.parameters(), lr)
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
            for step in range(steps):
                rows = torch.randint(len(clean), (batch,), generator=generator).to(clean.device)
                t = low + (high - low) * torch.rand(batch, generator=generator, dtype=torch.float64).to(clean.device)
                x0 = clean[rows]
                eps = torch.randn(x0.shape, generator=generator, dtype=x0.dtype).to(clean.device)
                x = column(self.schedule.alpha(t), x0) * x0 + column(self.schedule.sigma(t), x0) * eps
                answer = self._answer(n, x)
                value = F.mse_loss(answer, teacher[rows])
                if loss == "kl":
                    value = F.kl_div(F.log_softmax(answer, 1), teacher[rows], reduction="batchmean")
                if not math.isfinite(value.item()):
                    raise DivergedError(f"training of expert {n} diverged at step {step + 1}; lower lr={lr:g}")
                optimizer.zero_grad()
                value.backward()
                optimizer.step()
                decay.step()
        return self

    def _answer(self, n: int, x: Tensor) -> Tensor:
        expert: Any = self.experts[n]
        with expert:
            return self._network[0](x)
