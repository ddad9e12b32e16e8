"""Newton inversion: solves the implicit step, in the limit exactly, by the published update, and counts its passes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.diffusion import Denoiser, VPLinear, invert, sample
from hasten.diffusion.inversion.newton import NewtonInversion, newton
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rms

DATA = circle().sample(64, torch.Generator().manual_seed(1))


def miss(bench, steps: int, **hyper: Any) -> float:
    noise = invert(bench.denoiser, DATA, steps, "newton-inversion", grid="uniform", **hyper)
    return rms(sample(bench.denoiser, noise=noise, sampler="ddim", steps=steps, grid="uniform"), DATA)


@pytest.mark.parametrize("steps", [20, 50])
def test_beats_fixed_point_and_ddim_inversion(bench, steps: int) -> None:
    two = miss(bench, steps, iters=2, prior_weight=0.0)
    assert two <= 0.12 * miss(bench, steps, iters=1, variant="fixed_point")
    assert two <= 0.6 * miss(bench, steps, iters=2, variant="fixed_point")


def test_one_fixed_point_iteration_is_ddim_inversion(bench) -> None:
    mine = invert(bench.denoiser, DATA, 9, "newton-inversion", variant="fixed_point", iters=1)
    assert torch.equal(mine, invert(bench.denoiser, DATA, 9, "ddim-inversion"))


def test_whole_jacobian_inverts_exactly(bench) -> None:
    assert miss(bench, 20, iters=4, variant="exact") <= 1e-9


def test_many_iterations_solve_the_implicit_equation(bench) -> None:
    errors = [miss(bench, 20, iters=iters, prior_weight=0.0) for iters in (1, 3, 8)]
    assert errors[1] <= 0.3 * errors[0]
    assert errors[2] <= 0.1 * errors[1]


def test_prior_pulls_towards_likely_states(bench) -> None:
    """Towards `alpha_T x_0` at T."""
    mean = bench.denoiser.schedule.alpha(1.0) * DATA
    distances = [
        float((invert(bench.denoiser, DATA, 20, "newton-inversion", prior_weight=weight) - mean).norm())
        for weight in (0.0, 3.0)
    ]
    assert distances[1] < distances[0]


def test_one_iteration_by_hand() -> None:
    """Against the formula with a derivative by hand: `eps(x, t) = sin x` in one dimension, one step."""
    schedule = VPLinear()
    denoiser = Denoiser(lambda x, t: x.sin(), schedule)
    x0, s, t = torch.tensor([[0.3], [-1.1]], dtype=torch.float64), 0.1, 0.2
    scale = schedule.alpha(t) / schedule.alpha(s)
    weight = schedule.sigma(t) - scale * schedule.sigma(s)

    def f(z: Tensor) -> Tensor:
        return scale * x0 + weight * z.sin()

    def residual(z: Tensor) -> Tensor:
        return (f(z) - z).abs() + 0.1 * (f(z) - schedule.alpha(t) * x0).square() / (2 * schedule.sigma(t) ** 2)

    def slope(z: Tensor) -> Tensor:
        prior = 0.1 * (f(z) - schedule.alpha(t) * x0) / schedule.sigma(t) ** 2 * weight * z.cos()
        return (f(z) - z).sign() * (weight * z.cos() - 1) + prior

    z = x0 - residual(x0) / slope(x0)
    expected = torch.where(residual(z) < residual(x0), f(z), f(x0))
    mine = invert(denoiser, x0, method="newton-inversion", iters=1, prior_weight=0.1, grid=(t, s))
    torch.testing.assert_close(mine, expected, rtol=0, atol=1e-12)


def test_published_update() -> None:
    """`latent - 1/D * (l / grad)`, one latent, in place of the published code's D of 4 x 64 x 64."""
    generator = torch.Generator().manual_seed(0)
    z, gradient = (torch.randn(1, 4, 8, 8, dtype=torch.float64, generator=generator) for _ in range(2))
    value = torch.tensor([3.7], dtype=torch.float64)
    expected = z - (1 / (4 * 8 * 8)) * (value / gradient)
    torch.testing.assert_close(newton(z, value, gradient), expected, rtol=0, atol=1e-12)


def test_flat_coordinates_stay() -> None:
    z = torch.ones(1, 3, dtype=torch.float64)
    moved = newton(z, torch.tensor([3.0], dtype=torch.float64), torch.tensor([[1.0, 0.0, 1e-7]], dtype=torch.float64))
    assert moved.tolist() == [[0.0, 1.0, 1.0]]


@pytest.mark.parametrize(
    ("hyper", "nfe"),
    [
        ({"iters": 2}, 7 * 5),
        ({"iters": 3, "variant": "fixed_point"}, 7 * 3),
        ({"iters": 2, "variant": "exact"}, 7 * 2 * (1 + 2)),
    ],
)
def test_counts_forward_and_backward_passes(bench, hyper: dict[str, Any], nfe: int) -> None:
    costs: dict[str, int] = {}
    invert(bench.denoiser, DATA[:3], 7, "newton-inversion", costs=costs, **hyper)
    assert costs["nfe"] == nfe


@pytest.mark.parametrize(
    ("match", "hyper"),
    [
        ("iters", {"iters": 0}),
        ("prior_weight", {"prior_weight": -0.1}),
        ("prior_weight", {"prior_weight": math.inf}),
        ("variant", {"variant": "secant"}),
    ],
)
def test_refuses_bad_arguments(match: str, hyper: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=match):
        NewtonInversion(**hyper)


def test_exact_variant_refuses_images() -> None:
    denoiser = Denoiser(lambda x, t: 0.5 * x, VPLinear())
    with pytest.raises(InputError, match=r'192 x 192 Jacobian .* use variant="rnri"'):
        invert(denoiser, torch.zeros(2, 3, 8, 8), 4, "newton-inversion", variant="exact")
