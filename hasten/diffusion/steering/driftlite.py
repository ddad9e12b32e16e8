"""DriftLite: steered sampling with weighted particles whose drift is controlled so that the weights stay even."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, Real
from hasten.core.errors import InputError
from hasten.core.kinds.steer import Particles, Steering
from hasten.core.method import Method
from hasten.core.registry import entry
from hasten.diffusion.base import sampler, solving
from hasten.diffusion.samplers.ddim import standard_normal
from hasten.numerics import time_grid
from hasten.numerics.particles import effective_size, least_variance, systematic, weighted_variance
from hasten.numerics.targets import Field, Target, Terms, dot

USE = (
    "target = hasten.diffusion.Annealed(denoiser, gamma=2.0, shape=(2,))\n"
    'particles = hasten.diffusion.steer(target, 200, "{name}", steps=20{{hyper}})'
)


def _card(name: str, summary: str, cost: str, when: str) -> Card:
    return Card(
        name=name,
        family="diffusion",
        title="DriftLite: Lightweight Drift Control for Inference-Time Scaling of Diffusion Models",
        authors="Ren, Gao, Ying, Rotskoff & Han",
        year=2025,
        arxiv="2509.21655",
        paper_id=233,
        summary=summary,
        cost=cost,
        when=when,
        kinds=("steer",),
        search_space={"grid": Choice("quadratic", "logsnr", "uniform")},
        use=USE.format(name=name),
    )


VCG = _card(
    "driftlite",
    "Controls the drift by a few fields, fitted by least squares so that the particles' weights vary least.",
    "One evaluation and one divergence of the score per step, and a small least-squares problem.",
    "To anneal, multiply or tilt trained models, where plain particle weights degenerate.",
)
ECG = _card(
    "driftlite-ecg",
    "Controls the drift by gradient fields, fitted to the transport that the weights stand for.",
    "One evaluation per step and a small linear system.",
    "As `driftlite`, where the fields are gradients of known functions, such as a reward.",
)
SMC = Card(
    name="guided-smc",
    family="diffusion",
    title="Feynman-Kac Correctors in Diffusion: Annealing, Guidance, and Product of Experts",
    authors="Skreta et al.",
    year=2025,
    arxiv="2503.02819",
    summary="Follows the guided drift, corrects its bias by weights, and resamples when few particles carry them.",
    cost="One evaluation per step.",
    when="As the baseline of steered sampling.",
    kinds=("steer",),
    search_space={"ess_threshold": Real(0.2, 0.9)},
    use=USE.format(name="guided-smc"),
)


@dataclass
class SteeringState:
    """Particles under way.

    Attributes:
        particles: positions, and logarithms of the weights.
        times: grid from T to t_min.
        generator: source of all randomness.
        index: steps done.
        resampled: resamplings so far.
        least: smallest effective sample size so far, as a share of the particles.
        spread: weighted variance of the weights' logarithmic growth, summed over the steps.
    """

    particles: Particles
    times: time_grid.Grid
    generator: torch.Generator
    index: int = 0
    resampled: int = 0
    least: float = 1.0
    spread: float = 0.0

    @property
    def x(self) -> Particles:
        """The particles."""
        return self.particles


@sampler(SMC, mode=None)
@sampler(ECG, mode="ecg")
@sampler(VCG)
@dataclass(frozen=True)
class DriftLite(Method[Steering, SteeringState]):
    """Sequential Monte Carlo along a guided reverse diffusion, with drift control.

    Adding any field b to the drift leaves the weighted law as it is, if `h = div b + b.grad log q` is added to the
    potential. `b = sum_i theta_i b_i` with a few fields (scores, x, gradient of the reward) is fitted in every step.

    Args:
        mode: `vcg` takes theta that minimises the weighted variance of `potential + sum_i theta_i h_i`; `ecg` takes
            fields `b_i = grad phi_i` with known phi_i and solves `E[b_i.b_j] theta = E[phi_i (potential - mean)]`;
            None leaves the drift as it is.
        ess_threshold: resample when the effective sample size falls below this share of the particles; 0 never does.
        grid: kind of time grid, or the times themselves, decreasing.
        steps: Euler-Maruyama steps; None plans with what the problem allows.

    Cost: one evaluation per step and, for `vcg`, the divergence of the score: free where it is known, else one
    backward pass per probe. Source: Ren et al. (2025), arXiv 2509.21655.
    """

    mode: str | None = "vcg"
    ess_threshold: float = 0.5
    grid: str | Sequence[float] = field(default="quadratic", kw_only=True)
    steps: int | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        check.one_of("mode", self.mode, ("vcg", "ecg", None))
        check.real("ess_threshold", self.ess_threshold, 0.0, 1.0)
        if isinstance(self.grid, str):
            check.one_of("grid", self.grid, tuple(time_grid.KINDS))
        else:
            object.__setattr__(self, "grid", tuple(float(t) for t in self.grid))
        if self.steps is not None:
            check.integer("steps", self.steps, 1)

    def init(self, problem: Steering, generator: torch.Generator) -> SteeringState:
        target, steps = problem.target, self.steps or problem.horizon
        if not isinstance(self.grid, str):
            times = time_grid.checked(target.schedule, self.grid)
        elif steps is None:
            raise InputError(f"{self.card.name}: give steps, or a grid of times")
        else:
            times = time_grid.make(target.schedule, steps, self.grid)
        like = torch.empty((problem.count, *target.shape), dtype=problem.dtype, device=problem.device)
        x = target.start_scale() * standard_normal(like, generator)
        return SteeringState(Particles(x, x.new_zeros(len(x), dtype=torch.float64)), times, generator)

    def step(self, problem: Steering, state: SteeringState) -> SteeringState:
        t, s = state.times[state.index], state.times[state.index + 1]
        (x, log_weights), target = state.particles, problem.target
        weights = log_weights.softmax(0)
        with solving(lambda: f"step {state.index + 1} of {len(state.times) - 1}"):
            terms = target.terms(x, t, state.generator, slopes=self.mode == "vcg")
            drift, potential = terms.drift, terms.potential.double()
            for theta, b in zip(*self.control(terms, weights)):
                drift = drift + theta * b.value
                potential = potential + theta * _gain(b, terms.slope)
            noise = (target.schedule.diffusion2(t) * (t - s)) ** 0.5
            x = x + (t - s) * drift + noise * standard_normal(x, state.generator)
            growth = (t - s) * potential
            log_weights = log_weights + growth
        state.spread += weighted_variance(growth, weights)
        share = effective_size(log_weights) / len(x)
        state.least = min(state.least, share)
        if share < self.ess_threshold:
            x = x[systematic(log_weights, state.generator)]
            log_weights = torch.zeros_like(log_weights)
            state.resampled += 1
        state.particles = Particles(x, log_weights)
        state.index += 1
        return state

    def done(self, state: SteeringState) -> bool:
        return state.index >= len(state.times) - 1

    def control(self, terms: Terms, weights: Tensor) -> tuple[list[float], list[Field]]:
        """The coefficients theta, and the fields that they belong to."""
        if self.mode is None:
            return [], []
        potential = terms.potential.double()
        if self.mode == "vcg":
            fields = list(terms.basis)
            gains = torch.stack([_gain(b, terms.slope) for b in fields], dim=1)
            return least_variance(potential, gains, weights).tolist(), fields
        fields = [b for b in terms.basis if b.potential is not None]
        phi = torch.stack([b.potential.double() for b in fields if b.potential is not None], dim=1)
        gram = torch.stack([torch.stack([weights @ dot(a.value, b.value).double() for b in fields]) for a in fields])
        right = phi.T @ (weights * (potential - weights @ potential))
        return (torch.linalg.pinv(gram, hermitian=True) @ right).tolist(), fields


def _gain(b: Field, slope: Tensor) -> Tensor:
    """What the potential gains by adding b to the drift."""
    return (b.divergence + dot(b.value, slope)).double()


def steer(
    target: Target,
    count: int = 1000,
    sampler: str | Method[Steering, Any] = "driftlite",
    steps: int | None = None,
    *,
    generator: torch.Generator | None = None,
    costs: dict[str, float] | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
    **hyper: Any,
) -> Particles:
    """Draw weighted samples from a density that is made of a diffusion model's.

    Args:
        target: `Annealed(denoiser, gamma, shape)`, `Product(...)` or `Tilted(denoiser, reward, shape)`.
        count: number of particles.
        sampler: name of a steering method, or one.
        steps: steps from noise to data; 150 if not given.
        generator: source of all randomness; torch's global one if not given.
        costs: filled with `nfe` (evaluations per particle) and, by methods that weigh their particles, `resampled`,
            `least` (smallest effective sample size, as a share) and `spread` (summed variance of the weights' growth).
        dtype, device: of the particles.
        hyper: the method's own arguments, e.g. `ess_threshold=0.3`.

    Returns:
        `Particles`: `.x`, `.log_weights`, `.weights`. Expectations under the target are weighted means.

    Example:
        >>> particles = steer(Annealed(denoiser, 2.0, shape=(2,)), 1000, steps=150)
    """
    if isinstance(sampler, str):
        method = entry(sampler if "." in sampler else f"diffusion.{sampler}").build(**hyper)
    elif hyper:
        raise InputError(f"{', '.join(hyper)}: set these on the sampler that you pass")
    else:
        method = sampler
    if not isinstance(method, Method) or Steering.kind not in method.card.kinds:
        raise InputError(f"{sampler!r} is no steering method; `hasten list steer` shows those")
    if steps is not None:
        method = replace(method, steps=steps)  # type: ignore[type-var]
    problem = Steering(target, count, metric=lambda x: 0.0, dtype=dtype, device=device)
    problem.horizon = 150
    state = method.init(problem, generator or torch.default_generator)
    while not method.done(state):
        state = method.step(problem, state)
    if costs is not None:
        costs.update(nfe=problem.calls["nfe"])
        if isinstance(state, SteeringState):
            costs.update(resampled=state.resampled, least=state.least, spread=state.spread)
    return state.x
