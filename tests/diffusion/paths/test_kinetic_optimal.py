"""Kinetic-optimal paths: geodesics by another route, levels with their derivatives, and what they are good for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.integrate import solve_bvp

from hasten.core.errors import InputError
from hasten.diffusion import FlowMatching, KineticOptimalPath, VPCosine, sample
from hasten.diffusion.paths.kinetic_optimal import data_separation, euler, kinetic_energy
from hasten.numerics.mixture import Gaussian, circle
from hasten.numerics.reference import rms

PARTS = 4000
ANGLES = (np.arange(PARTS) + 0.5) * (0.5 * math.pi / PARTS)
TIMES = torch.linspace(0.02, 0.98, 25, dtype=torch.float64)


@pytest.fixture(scope="module")
def smooth() -> KineticOptimalPath:
    return KineticOptimalPath(tuple(0.5 + 0.4 * np.sin(2 * ANGLES)), scale=1.5)


def test_solves_the_euler_lagrange_equations(smooth) -> None:
    """Boundary-value problem in (r, theta) of the energy `r'^2 + (r theta' gamma(theta))^2`."""

    def slope(_, y):
        r, dr, theta, dtheta = y
        gamma, dgamma = 0.5 + 0.4 * np.sin(2 * theta), 0.8 * np.cos(2 * theta)
        return np.vstack((dr, r * (gamma * dtheta) ** 2, dtheta, -2 * dr * dtheta / r - dgamma / gamma * dtheta**2))

    def ends(a, b):
        return np.array([a[0] - 1, a[2], b[0] - 1, b[2] - math.pi / 2])

    s = np.linspace(0, 1, 41)
    guess = np.vstack((np.ones(41), np.zeros(41), s * math.pi / 2, np.full(41, math.pi / 2)))
    found = solve_bvp(slope, ends, s, guess, tol=1e-8)
    assert found.success
    r, _, theta, _ = found.sol(1 - TIMES.numpy())
    np.testing.assert_allclose(smooth.alpha(TIMES).numpy(), r * np.sin(theta), atol=1e-3)
    np.testing.assert_allclose(smooth.sigma(TIMES).numpy(), 1.5 * r * np.cos(theta), atol=1e-3)


def test_levels_fit_their_derivatives_and_inverse(smooth) -> None:
    step = 1e-6
    for level, slope in ((smooth.alpha, smooth.dalpha), (smooth.sigma, smooth.dsigma)):
        difference = (level(TIMES + step) - level(TIMES - step)) / (2 * step)
        torch.testing.assert_close(slope(TIMES), difference, rtol=2e-3, atol=1e-3)
    torch.testing.assert_close(smooth.t_of_lam(smooth.lam(TIMES)), TIMES, rtol=1e-9, atol=1e-9)
    assert smooth.alpha(0.0) == pytest.approx(1.0)
    assert (smooth.alpha(1.0), smooth.sigma(1.0), smooth.sigma(0.0)) == (0.0, pytest.approx(1.5), 0.0)
    assert hash(smooth) == hash(KineticOptimalPath(smooth.gamma, 1.5))


def test_full_separation_gives_straight_paths() -> None:
    path = KineticOptimalPath((1.0,) * 10)
    torch.testing.assert_close(path.alpha(TIMES), 1 - TIMES)
    torch.testing.assert_close(path.sigma(TIMES), TIMES)
    assert path.energy == pytest.approx(2.0)


def test_gamma_of_a_gaussian_is_known() -> None:
    """For `N(0, diag(v))` the expected turning is `sin cos (v - 1)/(v sin^2 + cos^2) x`, per dimension."""
    v = torch.tensor([0.2, 1.8], dtype=torch.float64)
    path = KineticOptimalPath.fit(Gaussian(v), n_theta=40, samples=40000)
    theta = torch.from_numpy((np.arange(40) + 0.5) * (0.5 * math.pi / 40))[:, None]
    total = v * theta.sin() ** 2 + theta.cos() ** 2
    exact = ((theta.sin() * theta.cos() * (v - 1)) ** 2 / total).mean(1).sqrt()
    torch.testing.assert_close(torch.tensor(path.gamma, dtype=torch.float64), exact, rtol=0.02, atol=1e-4)


def test_less_energy_and_error_than_other_paths() -> None:
    law = circle()
    path = KineticOptimalPath.fit(law, n_theta=100, samples=4000)
    energy = kinetic_energy(path, law, parts=40, samples=2000, seed=1)
    assert energy == pytest.approx(path.energy, rel=0.04)
    assert energy < 0.88 * kinetic_energy(VPCosine(s=1e-6, T=0.9999), _unit(law), parts=40, samples=2000)
    straight = FlowMatching()
    assert energy < 0.45 * kinetic_energy(straight, _unit(law), parts=40, samples=2000)
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    errors = []
    for schedule, target in ((path, law), (straight, _unit(law))):
        denoiser = target.denoiser(schedule, "x0")
        start = schedule.noise_scale * noise
        errors.append(rms(euler(denoiser, start, 8), denoiser.solve(start, steps=150)) / schedule.noise_scale)
    assert errors[0] < 0.75 * errors[1]


def _unit(law):
    scale = math.sqrt(2.15)
    return type(law)(law.means / scale, law.variances / scale**2, law.weights)


def test_samplers_run_on_it(bench) -> None:
    path = KineticOptimalPath.fit(circle(), n_theta=100, samples=2000)
    denoiser = circle().denoiser(path)
    noise = path.noise_scale * bench.noise
    assert rms(sample(denoiser, noise=noise, sampler="ddim", steps=64, grid="logsnr"), denoiser.solve(noise)) < 0.15


def test_separation_grows_with_dimension_and_signal() -> None:
    few, many = (torch.randn(4, d, generator=torch.Generator().manual_seed(0)) for d in (16, 256))
    assert data_separation(few, 0.25, 512) < 0.7 < 0.95 < data_separation(many, 0.25, 512) <= 1.0
    assert data_separation(few, 0.1, 512) < data_separation(few, 1.0, 512)


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("gamma", lambda: KineticOptimalPath((0.5,))),
        ("gamma", lambda: KineticOptimalPath((0.5, 0.0))),
        ("gamma", lambda: KineticOptimalPath((0.5, 1.5))),
        ("scale", lambda: KineticOptimalPath((0.5, 0.5), 0.0)),
        ("points of shape", lambda: KineticOptimalPath.fit(torch.zeros(3))),
        ("all be zero", lambda: KineticOptimalPath.fit(torch.zeros(3, 2))),
        ("n_theta", lambda: KineticOptimalPath.fit(circle(), n_theta=1)),
        ("snr", lambda: data_separation(circle(), 0.0)),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()
