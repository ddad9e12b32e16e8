"""FIND: a distribution of start noise that is fitted to a reward, so that the samples of one prompt earn more of it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.core.registry import register

CARD = Card(
    name="find",
    family="diffusion",
    title="FIND: Fine-tuning Initial Noise Distribution with Policy Optimization for Diffusion Models",
    authors="Chen et al.",
    year=2024,
    arxiv="2407.19453",
    paper_id=356,
    summary="Fits mean and width of the start noise to a reward of the samples by clipped policy gradients.",
    cost="One sampler run per reward; two numbers per dimension of the noise. Nothing in the model changes.",
    when="When one prompt's samples must earn more of a reward that need not be differentiable.",
    kinds=("sample",),
    needs=("reward",),
    use=(
        "run = lambda noise: hasten.diffusion.sample(denoiser, noise=noise, steps=5)\n"
        "policy = hasten.diffusion.FIND().fit(run, lambda x: x[:, 0], (2,), runs=60)\n"
        "samples = run(policy.sample(16))"
    ),
)

HIDDEN = 16


class NoisePolicy:
    """Start noise `N(mean, diag(std^2))`, in units in which the model's own start noise is standard normal.

    Attributes:
        mean, log_std: of the noise, each of the shape of one sample.
        best: the best start noise that was tried, and its reward; None before the first.
    """

    def __init__(
        self, shape: Sequence[int], *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> None:
        sizes = tuple(check.integer("shape", size, 1) for size in shape)
        self.mean = torch.zeros(sizes, dtype=dtype, device=device)
        self.log_std = torch.zeros(sizes, dtype=dtype, device=device)
        self.best: tuple[Tensor, float] | None = None

    def sample(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draws of start noise, shape (count, ...)."""
        check.integer("count", count, 1)
        device = self.mean.device if generator is None else generator.device
        unit = torch.randn(count, *self.mean.shape, dtype=self.mean.dtype, device=device, generator=generator)
        with torch.no_grad():
            return self.mean + self.log_std.exp() * unit.to(self.mean.device)

    def log_prob(self, z: Tensor) -> Tensor:
        """Log density of start noise, a mean over its dimensions; shape (batch,)."""
        unit = (z - self.mean) * (-self.log_std).exp()
        return (-0.5 * unit.square() - self.log_std - 0.5 * math.log(2.0 * math.pi)).flatten(1).mean(1)

    def kl(self) -> float:
        """Divergence from the standard normal, in nats, a sum over the dimensions."""
        with torch.no_grad():
            return float((0.5 * (self.mean.square() + torch.expm1(2 * self.log_std)) - self.log_std).sum())


class Batch(NamedTuple):
    """Start noise, its rewards, its log density under the policy that drew it, and that policy's parameters."""

    z: Tensor
    rewards: Tensor
    log_prob: Tensor
    policy: Tensor


@register(CARD)
@dataclass(frozen=True)
class FIND:
    """Policy optimisation of the start noise.

    A round draws a batch z from the policy, runs the sampler and takes the rewards r. With the last few batches it then
    makes `epochs` steps of Adam on mean and log std, down the mean of `-min(rho A, clip(rho, 1 - c, 1 + c) A)`. The
    ratio is `rho = exp(log pi(z) - log pi_old(z))`, log densities being means over the dimensions so that it stays
    finite; the advantage is `A = (r - b)/s`, with s the standard deviation of the rewards kept. The baseline b is what
    a small network expects the present policy to earn, trained on the batches kept.

    Args:
        lr: step size of Adam.
        clip: c, in (0, 1); None does not clip, and the policy may run away from noise that the model knows.
        batch: sampler runs per round.
        history: batches that are kept and used again.
        epochs: steps of Adam per round.
        baseline: `network`, `mean` of the rewards kept, or None.

    Cost: one sampler run per reward; a network of 16 hidden units on mean and log std.
    Source: Chen et al. (2024), arXiv 2407.19453.
    """

    lr: float = 0.02
    clip: float | None = 0.2
    batch: int = 10
    history: int = 10
    epochs: int = 3
    baseline: str | None = "network"

    def __post_init__(self) -> None:
        check.positive("lr", self.lr)
        if self.clip is not None:
            check.real("clip", self.clip, 0.0, 1.0, open_low=True, open_high=True)
        check.integer("batch", self.batch, 2)
        check.integer("history", self.history, 1)
        check.integer("epochs", self.epochs, 1)
        check.one_of("baseline", self.baseline, ("network", "mean", None))

    def fit(
        self,
        sampler: Callable[[Tensor], Tensor],
        reward: Callable[[Tensor], Tensor],
        shape: Sequence[int],
        runs: int = 300,
        *,
        generator: torch.Generator | None = None,
        callback: Callable[[NoisePolicy], object] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> NoisePolicy:
        """The policy after `runs` sampler runs.

        Args:
            sampler: black box from start noise (batch, ...), standard normal for the model as it is, to samples. Of a
                model whose noise has another scale it multiplies by `denoiser.schedule.noise_scale`.
            reward: samples to rewards (batch,), larger is better; no gradients are taken.
            shape: shape of one sample's noise.
            runs: sampler runs to spend, at least `batch`.
            generator: source of all randomness; torch's global one if not given.
            callback: called with the policy after every round.
            dtype, device: of the noise.
        """
        check.integer("runs", runs, self.batch)
        generator = generator or torch.default_generator
        policy = NoisePolicy(shape, dtype=dtype, device=device)
        policy.mean.requires_grad_(True)
        policy.log_std.requires_grad_(True)
        optimizer = torch.optim.Adam([policy.mean, policy.log_std], lr=self.lr)
        expected = Baseline(2 * policy.mean.numel(), generator).to(policy.mean) if self.baseline == "network" else None
        kept: list[Batch] = []
        for _ in range(runs // self.batch):
            kept = [*kept, self.draw(policy, sampler, reward, generator)][-self.history :]
            self.improve(policy, optimizer, kept, expected)
            if callback is not None:
                callback(policy)
        policy.mean.requires_grad_(False)
        policy.log_std.requires_grad_(False)
        return policy

    def draw(
        self,
        policy: NoisePolicy,
        sampler: Callable[[Tensor], Tensor],
        reward: Callable[[Tensor], Tensor],
        generator: torch.Generator,
    ) -> Batch:
        """A batch of start noise with its rewards."""
        with torch.no_grad():
            z = policy.sample(self.batch, generator)
            rewards = torch.as_tensor(reward(sampler(z)))
            if rewards.shape != (self.batch,) or not bool(rewards.isfinite().all()):
                raise InputError(f"reward must return {self.batch} finite numbers, got {rewards!r}")
            rewards = rewards.to(z)
            top = int(rewards.argmax())
            if policy.best is None or float(rewards[top]) > policy.best[1]:
                policy.best = (z[top].clone(), float(rewards[top]))
            return Batch(z, rewards, policy.log_prob(z), _parameters(policy))

    def improve(
        self, policy: NoisePolicy, optimizer: torch.optim.Optimizer, kept: list[Batch], expected: Baseline | None
    ) -> None:
        """The policy's steps on the batches kept."""
        z, rewards, old = (torch.cat(parts) for parts in list(zip(*kept))[:3])
        centre, spread = rewards.mean(), rewards.std() + 1e-8
        level = centre if self.baseline is not None else torch.zeros_like(centre)
        if expected is not None:
            expected.learn(kept, centre, spread)
            with torch.no_grad():
                level = centre + spread * expected(_parameters(policy))
        advantage = (rewards - level) / spread
        for _ in range(self.epochs):
            optimizer.zero_grad()
            self.loss(policy, z, advantage, old).backward()
            optimizer.step()

    def loss(self, policy: NoisePolicy, z: Tensor, advantage: Tensor, old: Tensor) -> Tensor:
        """Mean of `-min(rho A, clip(rho) A)`."""
        ratio = (policy.log_prob(z) - old).exp()
        gain = ratio * advantage
        if self.clip is not None:
            gain = torch.minimum(gain, ratio.clamp(1.0 - self.clip, 1.0 + self.clip) * advantage)
        return -gain.mean()


class Baseline(nn.Module):
    """Expected reward of a policy, in standard units of the rewards kept, from its mean and log std."""

    def __init__(self, inputs: int, generator: torch.Generator) -> None:
        super().__init__()
        first, last = nn.Linear(inputs, HIDDEN), nn.Linear(HIDDEN, 1)
        self.layers = nn.Sequential(first, nn.Tanh(), last)
        for layer in (first, last):
            bound = layer.in_features**-0.5
            with torch.no_grad():
                for parameter in layer.parameters():
                    drawn = torch.rand(parameter.shape, generator=generator, device=generator.device)
                    parameter.copy_(bound * (2.0 * drawn - 1.0))
        self.optimizer: torch.optim.Optimizer | None = None

    def forward(self, policy: Tensor) -> Tensor:
        """Expected reward, shape of the parameters without their last dimension."""
        return self.layers(policy)[..., 0]

    def learn(self, kept: list[Batch], centre: Tensor, spread: Tensor, steps: int = 20) -> None:
        """Adam on the mean square error over the batches kept."""
        self.optimizer = self.optimizer or torch.optim.Adam(self.parameters(), lr=1e-2)
        policies = torch.stack([batch.policy for batch in kept])
        goals = (torch.stack([batch.rewards.mean() for batch in kept]) - centre) / spread
        for _ in range(steps):
            self.optimizer.zero_grad()
            (self(policies) - goals).square().mean().backward()
            self.optimizer.step()


def _parameters(policy: NoisePolicy) -> Tensor:
    return torch.cat((policy.mean.detach().flatten(), policy.log_std.detach().flatten()))
