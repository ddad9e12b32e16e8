"""Repulsion against the published code's numbers, its use through renderers and measurements, and bad inputs."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.errors import DivergedError, InputError
from hasten.core.run import run
from hasten.diffusion import RSD, Annealed, Denoiser, VPLinear, reconstruct, steer
from hasten.diffusion.steering.repulsive import repulsion
from hasten.numerics.mixture import circle

MIXTURE = circle()
DENOISER = MIXTURE.denoiser(VPLinear(T=0.6))
POINTS = torch.tensor([[0.5, -1.0], [0.1, 0.7], [-0.9, 0.3], [1.2, 0.4], [0.0, -0.2]], dtype=torch.float64)
MATRIX = torch.tensor([[1.0, 0.5], [-0.3, 0.8], [0.2, -1.1]], dtype=torch.float64)
IDENTITY = [
    [0.36696638618656086, -1.270090455772806],
    [0.12312241937114085, 1.5113354969682167],
    [-2.3141236024396283, 0.24763092667278125],
    [1.6897892709209543, 0.49010757222874834],
    [-0.2110412842778044, -0.7305032253530819],
]
TANH = [
    [0.050131629537968514, -0.7234669881759134],
    [0.0013817853969410733, 1.5175525716045928],
    [-1.5149593746125496, 0.4935804684294686],
    [0.5573823768848235, -0.3743651215798902],
    [-0.4261695989414185, -0.7745678043777585],
]


def features(x: Tensor) -> Tensor:
    return torch.tanh(x.flatten(1) @ MATRIX.T)


def draw(method: RSD | str, count: int = 8, steps: int | None = 5, seed: int = 0, **options) -> Tensor:
    target = Annealed(DENOISER, 1.0, (2,))
    generator = torch.Generator().manual_seed(seed)
    return steer(target, count, method, steps, generator=generator, dtype=torch.float64, **options).x


def test_repulsion_equals_published_code() -> None:
    """Kernel block of `rsd.py` in nzilberstein/Repulsive-score-distillation-RSD-, run on these five points."""
    torch.testing.assert_close(repulsion(POINTS), torch.tensor(IDENTITY, dtype=torch.float64), atol=1e-12, rtol=0)
    torch.testing.assert_close(repulsion(POINTS, features), torch.tensor(TANH, dtype=torch.float64), atol=1e-12, rtol=0)
    image = POINTS.view(5, 1, 2, 1)
    assert repulsion(image).shape == image.shape
    torch.testing.assert_close(repulsion(image, features).flatten(1), repulsion(POINTS, features))


@pytest.mark.parametrize("n", [3, 4, 7, 32])
def test_repulsion_is_the_formula(n: int) -> None:
    phi = torch.randn(n, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(n))
    for i, pushed in enumerate(repulsion(phi)):
        others = phi[[j for j in range(n) if j != i]]
        squares = (phi[i] - others).square().sum(1)
        h = squares.median() / math.log(n - 1)
        kernel = torch.exp(-squares / h)
        expected = (2.0 * kernel[:, None] * (phi[i] - others) / h).sum(0) / kernel.sum()
        torch.testing.assert_close(pushed, expected, atol=1e-12, rtol=0)


def test_repulsion_is_finite_where_particles_coincide() -> None:
    same = torch.ones(4, 2, dtype=torch.float64)
    assert not repulsion(same).any()
    same[3] = 2.0
    pushed = repulsion(same)
    assert bool(pushed.isfinite().all())
    assert bool((pushed[3] > 0).all())


def test_first_step_by_hand() -> None:
    """The first step of Adam is `lr sign(gradient)`; the second one tells the sizes apart."""
    grid = (0.5, 0.3, 0.1)
    method = RSD(0.7, grid=grid)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8, 2, dtype=torch.float64, generator=generator)
    first, second = torch.zeros_like(z), torch.zeros_like(z)
    schedule = DENOISER.schedule
    for i, t in enumerate(grid[:-1], 1):
        alpha, sigma = schedule.alpha(t), schedule.sigma(t)
        noise = torch.randn(8, 2, dtype=torch.float64, generator=generator)
        x = alpha * z + sigma * noise
        d = MIXTURE.eps(x, alpha, sigma) - noise - 0.7 * sigma * repulsion(x)
        gradient = sigma / alpha * d / 16
        first, second = 0.9 * first + 0.1 * gradient, 0.99 * second + 0.01 * gradient**2
        z = z - 0.02 * (first / (1 - 0.9**i)) / ((second / (1 - 0.99**i)).sqrt() + 1e-8)
    torch.testing.assert_close(draw(method, steps=None), z, atol=1e-10, rtol=0)


def test_no_repulsion_is_score_distillation() -> None:
    assert torch.equal(draw(RSD(gamma=0.0)), draw("sds"))
    assert not torch.equal(draw("rsd"), draw("sds"))
    assert draw("sds", count=2).shape == (2, 2)
    assert hasten.get("rsd").make().card.name == "rsd"
    assert hasten.get("sds").make().gamma == 0.0


def test_loss_reaches_what_makes_the_particles() -> None:
    """A loop of the user's own, with a renderer and any optimizer."""
    weights = torch.eye(2, dtype=torch.float64).requires_grad_(True)
    latents = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    method = RSD(weight=0.5)
    loss = method.loss(DENOISER, latents @ weights, 0.3, torch.Generator().manual_seed(2))
    loss.backward()
    alpha, sigma = DENOISER.schedule.alpha(0.3), DENOISER.schedule.sigma(0.3)
    noise = torch.randn(6, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    x = alpha * latents + sigma * noise
    d = DENOISER.eps(x, 0.3) - noise - sigma * repulsion(x)
    torch.testing.assert_close(weights.grad, 0.5 * sigma / alpha / 12 * latents.T @ d)


def test_particles_spread_and_count_their_evaluations() -> None:
    costs: dict[str, float] = {}
    apart = draw("rsd", count=16, steps=150, lr=5e-2, costs=costs)
    assert costs == {"nfe": 150}
    together = draw("sds", count=16, steps=150, lr=5e-2)
    assert float(torch.pdist(apart).mean()) > 1.5 * float(torch.pdist(together).mean())


def test_reconstruction_fits_the_measurement() -> None:
    y = MIXTURE.means[1, :1]
    options = {"generator": torch.Generator().manual_seed(0), "dtype": torch.float64}
    found = reconstruct(DENOISER, y, lambda x: x[:, :1], (2,), 12, RSD(weight=0.1, lr=0.1), 150, **options)
    assert found.shape == (12, 2)
    assert float((found[:, :1] - y).abs().max()) < 0.2
    assert not found.requires_grad
    options["generator"].manual_seed(0)
    doubled = reconstruct(
        DENOISER, 2 * y, lambda x: x[:, :1], (2,), 12, RSD(weight=0.1, lr=0.1), 150, decode=lambda z: 2 * z, **options
    )
    assert float((doubled[:, :1] - 2 * y).abs().max()) < 0.4
    assert reconstruct(DENOISER, y, lambda x: x[:, :1], (2,), steps=2).shape == (4, 2)


def test_races_on_the_ready_problem() -> None:
    for name in ("rsd", "sds"):
        problem = hasten.problem("annealed-mixture:particles=50")
        trace = run(hasten.get(name).make(), problem, budget=50, target=-1.0)
        assert trace.status == "budget", trace.message
        assert trace.calls["nfe"][-1] == 50


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("at least 3 particles", lambda: draw("rsd", count=2)),
        ("at least 3 particles", lambda: RSD().loss(DENOISER, POINTS[:2], 0.3)),
        ("at least 3 particles", lambda: reconstruct(DENOISER, POINTS[0], lambda x: x, (2,), 2)),
        ("gamma", lambda: RSD(gamma=-1.0)),
        ("weight", lambda: RSD(weight=0.0)),
        ("lr", lambda: RSD(lr=math.nan)),
        ("betas", lambda: RSD(betas=(0.9, 1.0))),
        ("grid", lambda: RSD(grid="linear")),
        ("steps", lambda: RSD(steps=0)),
        ("features must return", lambda: draw(RSD(features=lambda x: x.sum()))),
        ("does not fit", lambda: reconstruct(DENOISER, torch.zeros(3), lambda x: x, (2,))),
        ("rho", lambda: reconstruct(DENOISER, torch.zeros(2), lambda x: x, (2,), rho=0.0)),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_step_of_a_nan_is_named() -> None:
    broken = Denoiser(lambda x, t: torch.where(t[:, None] < 0.4, math.nan, 0.5 * x), VPLinear())
    with pytest.raises(DivergedError, match=r"step \d.*nan or infinity.* at t"):
        steer(Annealed(broken, 1.0, (2,)), 8, "rsd", 10)
