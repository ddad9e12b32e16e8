"""Steered particles against densities that are known, whatever the control; resampling; bad inputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.errors import DivergedError, InputError
from hasten.core.run import run
from hasten.diffusion import Annealed, Denoiser, DriftLite, Product, Tilted, VPLinear, steer
from hasten.numerics.divergence import divergence
from hasten.numerics.mixture import Gaussian, GaussianMixture, circle
from hasten.numerics.particles import effective_size, least_variance, systematic, weighted_variance

SCHEDULE = VPLinear()
MIXTURE = circle(3)
SEEKING = {"rsd", "sds"}
"""Methods that seek modes instead of drawing from the density."""
NAMES = [card.name for card in hasten.methods("diffusion") if "steer" in card.kinds and card.name not in SEEKING]


def draw(target, name="driftlite", count: int = 800, steps: int = 60, seed: int = 0, **options):
    generator = torch.Generator().manual_seed(seed)
    return steer(target, count, name, steps, generator=generator, dtype=torch.float64, **options)


def known(mixture: GaussianMixture):
    return lambda x, t: mixture.divergence(x, SCHEDULE.alpha(t), SCHEDULE.sigma(t))


def annealed(gamma: float = 2.0) -> Annealed:
    return Annealed(MIXTURE.denoiser(SCHEDULE), gamma, (2,), divergence=known(MIXTURE))


def mean_and_error(particles, values: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean of `values` (n, k), and its standard error."""
    weights = particles.weights[:, None]
    mean = (weights * values).sum(0)
    return mean, (weights * (values - mean)).square().sum(0).sqrt()


@dataclass(frozen=True)
class Fixed(DriftLite):
    """A control that is not fitted."""

    thetas: ClassVar[tuple[float, ...]] = (-0.2, 0.2)

    def control(self, terms, weights):
        return list(self.thetas), list(terms.basis)


def test_any_control_leaves_the_law_as_it_is() -> None:
    """Weighted moments with a fixed theta equal those without control, within three standard errors."""
    fixed, plain = (
        draw(annealed(1.2), made(ess_threshold=0.0), 3000, 150) for made in (Fixed, partial(DriftLite, None))
    )
    for power in (1, 2):
        (one, first), (two, second) = (mean_and_error(found, found.x**power) for found in (fixed, plain))
        assert bool(((one - two).abs() <= 3 * (first**2 + second**2).sqrt() + 0.02).all())


@pytest.mark.parametrize("name", NAMES)
def test_annealed_mixture_has_its_modes(name: str) -> None:
    found = draw(annealed(1.3), name, 1500, 100)
    nearest = torch.cdist(found.x, MIXTURE.means).argmin(1)
    share = torch.zeros(3, dtype=torch.float64).index_add(0, nearest, found.weights)
    goal = MIXTURE.weights**1.3 / (MIXTURE.weights**1.3).sum()
    assert float((share - goal).abs().max()) < 0.06


@pytest.mark.parametrize("name", NAMES)
def test_product_of_gaussians_is_the_gaussian(name: str) -> None:
    one, two = Gaussian([0.5, 0.2], [1.0, 0.0]), Gaussian([0.25, 0.4], [-0.5, 0.5])
    gammas = (0.7, 1.2)
    target = Product(
        [one.denoiser(SCHEDULE), two.denoiser(SCHEDULE)], gammas, (2,), divergences=[known(one), known(two)]
    )
    found = draw(target, name, 3000, 150)
    precision = gammas[0] / one.variances[0] + gammas[1] / two.variances[0]
    mean = (gammas[0] * one.means[0] / one.variances[0] + gammas[1] * two.means[0] / two.variances[0]) / precision
    measured, error = mean_and_error(found, found.x)
    assert bool(((measured - mean).abs() < 4 * error + 0.02).all())
    spread, error = mean_and_error(found, (found.x - mean).square())
    assert bool(((spread * precision - 1.0).abs() < 4 * error * precision + 0.05).all())


@pytest.mark.parametrize("name", NAMES)
def test_linear_reward_moves_the_mixture(name: str) -> None:
    """`q ~ p exp(a.x)` of a mixture: means move by variance times a, weights by `exp(a.m + variance |a|^2/2)`."""
    a = torch.tensor([0.8, -0.5], dtype=torch.float64)
    target = Tilted(MIXTURE.denoiser(SCHEDULE), lambda x: x @ a, (2,), divergence=known(MIXTURE))
    found = draw(target, name, 3000, 150)
    weights = MIXTURE.weights * (MIXTURE.means @ a).exp()
    exact = (weights / weights.sum()) @ MIXTURE.means + 0.15 * a
    measured, error = mean_and_error(found, found.x)
    assert bool(((measured - exact).abs() < 4 * error + 0.03).all())


def test_control_keeps_the_particles_effective() -> None:
    costs: dict[str, float] = {}
    draw(annealed(), costs=costs)
    assert costs["least"] > 0.85
    assert costs["resampled"] == 0
    spread = costs["spread"]
    draw(annealed(), "guided-smc", costs=costs)
    assert costs["least"] < 0.5
    assert costs["resampled"] >= 1
    assert spread < 0.02 * costs["spread"]
    assert costs["nfe"] == 60


def test_without_a_target_nothing_is_weighed() -> None:
    found = draw(annealed(1.0), "guided-smc")
    assert float(found.log_weights.abs().max()) == 0.0


def test_divergences_are_differentiated_and_counted() -> None:
    x = torch.randn(20, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = MIXTURE.denoiser(SCHEDULE)
    score, exact = divergence(lambda y: denoiser.score(y, 0.3), x)
    torch.testing.assert_close(score, denoiser.score(x, 0.3))
    torch.testing.assert_close(exact, known(MIXTURE)(x, 0.3))
    _, rough = divergence(lambda y: denoiser.score(y, 0.3), x, 4000, torch.Generator().manual_seed(0))
    assert float((rough - exact).abs().max()) < 0.1 * float(exact.abs().max())
    costs: dict[str, float] = {}
    same = draw(Annealed(denoiser, 2.0, (2,)), count=50, steps=10, costs=costs)
    assert costs["nfe"] == 10 * 3
    torch.testing.assert_close(same.x, draw(annealed(), count=50, steps=10).x)
    draw(Annealed(denoiser, 2.0, (2,), probes=1), count=50, steps=10, costs=costs)
    assert costs["nfe"] == 10 * 2


def test_systematic_resampling_is_even() -> None:
    weights = torch.tensor([0.5, 0.05, 0.25, 0.2], dtype=torch.float64).repeat(5) / 5
    for seed in range(20):
        counts = torch.bincount(systematic(weights.log(), torch.Generator().manual_seed(seed)), minlength=20)
        assert bool(((counts - 20 * weights).abs() < 1.0).all())
    assert effective_size(weights.log()) == pytest.approx(1 / float(weights.square().sum()))
    assert effective_size(torch.zeros(7) + 300.0) == pytest.approx(7.0)


def test_least_variance_is_least() -> None:
    generator = torch.Generator().manual_seed(0)
    columns = torch.randn(50, 3, dtype=torch.float64, generator=generator)
    columns[:, 2] = columns[:, 0]
    target = 2.0 * columns[:, 0] - columns[:, 1] + 3.0
    weights = torch.rand(50, dtype=torch.float64, generator=generator).softmax(0)
    theta = least_variance(target, columns, weights)
    assert theta.tolist() == pytest.approx([-1.0, 1.0, -1.0])
    assert weighted_variance(target + columns @ theta, weights) < 1e-20
    assert not least_variance(target, torch.zeros(50, 1, dtype=torch.float64), weights).any()


def test_races_on_the_ready_problem() -> None:
    trace = run(
        hasten.get("driftlite").make(), hasten.problem("annealed-mixture:particles=100"), budget=50, target=-1.0
    )
    assert trace.status == "budget"
    assert trace.metric[-1] < 0.3


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("gamma", lambda: Annealed(MIXTURE.denoiser(SCHEDULE), 0.0, (2,))),
        ("one gamma per", lambda: Product([MIXTURE.denoiser(SCHEDULE)], (1.0, 2.0), (2,))),
        ("sum of the gammas", lambda: Product([MIXTURE.denoiser(SCHEDULE)], (-1.0,), (2,))),
        ("at least one", lambda: Product([], (), (2,))),
        (
            "share one schedule",
            lambda: Product([MIXTURE.denoiser(SCHEDULE), MIXTURE.denoiser(VPLinear(0.2))], (1, 1), (2,)),
        ),
        ("reward", lambda: Tilted(MIXTURE.denoiser(SCHEDULE), 3.0, (2,))),
        ("reward must return", lambda: draw(Tilted(MIXTURE.denoiser(SCHEDULE), lambda x: x, (2,)))),
        ("mode", lambda: DriftLite("best")),
        ("ess_threshold", lambda: DriftLite(ess_threshold=1.5)),
        ("steps", lambda: DriftLite(steps=0)),
        ("count", lambda: draw(annealed(), count=1)),
        ("grid", lambda: draw(annealed(), DriftLite(grid=(0.1, 0.5)))),
        ("no steering method", lambda: draw(annealed(), "ddim")),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_step_of_a_nan_is_named() -> None:
    broken = Denoiser(lambda x, t: torch.where(t[:, None] < 0.4, math.nan, 0.5 * x), SCHEDULE)
    with pytest.raises(DivergedError, match=r"step \d.*nan or infinity.* at t"):
        draw(Annealed(broken, 2.0, (2,), probes=1))
