"""Conjugate integrators: the written-out step, DDIM at lam=0, both modes, the search, refusals."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch
from scipy.integrate import quad
from scipy.linalg import expm

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, ConjugateIntegrator, FlowMatching, VPLinear, sample
from hasten.numerics.mixture import circle
from hasten.numerics.reference import order_fit, rms

TIMES = (1.0, 0.6, 0.25, 0.05)


@pytest.mark.parametrize("mode", ["identity", "ones"])
def test_is_the_written_out_step(wave, start, mode: str) -> None:
    """With matrices: A by scipy's exponential, the integral of A Psi by adaptive quadrature in time."""
    schedule, lam = VPLinear(), 0.7
    matrix = lam * (torch.eye(2) if mode == "identity" else torch.full((2, 2), 0.5)).double()
    x = start
    for s, t in pairwise(TIMES):

        def a(tau: float, s: float = s):
            return torch.from_numpy(expm((matrix * (tau - s)).numpy())) * schedule.alpha(s) / schedule.alpha(tau)

        def psi(tau: float) -> float:
            return schedule.diffusion2(tau) / (2 * schedule.sigma(tau))

        integral = torch.tensor(
            [[quad(lambda tau, i=i, j=j: float(a(tau)[i, j]) * psi(tau), s, t)[0] for j in (0, 1)] for i in (0, 1)]
        ).double()
        y = x + (t - s) * x @ matrix.mT + wave.eps(x, s) @ integral.mT
        x = y @ torch.linalg.inv(a(t)).mT
    found = sample(wave, noise=start, sampler=ConjugateIntegrator(lam, mode, grid=TIMES))
    torch.testing.assert_close(found, x, rtol=1e-7, atol=1e-7)


@pytest.mark.parametrize("mode", ["identity", "ones"])
@pytest.mark.parametrize("grid", ["quadratic", "logsnr"])
def test_zero_is_ddim(bench, mode: str, grid: str) -> None:
    ddim = sample(bench.denoiser, noise=bench.noise, sampler=DDIM(grid=grid), steps=7)
    zero = sample(bench.denoiser, noise=bench.noise, sampler=ConjugateIntegrator(0.0, mode, grid=grid), steps=7)
    torch.testing.assert_close(zero, ddim, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("mode", ["identity", "ones"])
def test_any_lam_is_of_first_order(bench, mode: str) -> None:
    errors = [
        rms(sample(bench.denoiser, noise=bench.noise, sampler=ConjugateIntegrator(-0.3, mode), steps=n), bench.exact)
        for n in (100, 200)
    ]
    assert 0.8 < order_fit(errors, (100, 200)) < 1.4


def test_search_finds_a_better_lam_and_keeps_zero(bench) -> None:
    found = ConjugateIntegrator().search(bench.denoiser, bench.noise[:32], steps=5)
    errors = [
        rms(sample(bench.denoiser, noise=bench.noise[32:], sampler=made, steps=5), bench.exact[32:])
        for made in (found, ConjugateIntegrator())
    ]
    assert errors[0] < errors[1]
    assert found.steps == 5
    assert ConjugateIntegrator().search(bench.denoiser, bench.noise, [1.0, -1.0], steps=5).lam == 0.0


def test_refusals(bench) -> None:
    for match, make in (
        ("mode", lambda: ConjugateIntegrator(mode="diagonal")),
        ("lam", lambda: ConjugateIntegrator(float("nan"))),
        ("quad", lambda: ConjugateIntegrator(quad=0)),
        ("give steps", lambda: ConjugateIntegrator().search(bench.denoiser, bench.noise)),
    ):
        with pytest.raises(InputError, match=match):
            make()
    with pytest.raises(InputError, match="alpha=0"):
        sample(circle().denoiser(FlowMatching(T=1.0)), noise=bench.noise, sampler=ConjugateIntegrator(grid=(1.0, 0.5)))
