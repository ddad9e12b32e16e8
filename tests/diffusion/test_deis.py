"""DEIS against its authors' code, its orders, its reduction to DDIM and its bad inputs."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, DEIS, DiscreteVP, FlowMatching, VPLinear, sample
from hasten.numerics.mixture import circle
from hasten.numerics.reference import order_fit, rms

# qsh-zh/deis at a30709f, jax_deis in float64: VPSDE with beta from 0.1 to 20 on [1e-3, 1], ts_phase "t", ts_order 2,
# 10 steps, the `wave` network from `start`. Its integrals are rectangle rules, here with 400000 points instead of
# 10000, which leaves a relative error of 1e-5; `rho_rk` has no integrals.
AUTHORS = {
    ("tab", 1): [-58.782129573195554, -14.206141932547146, 27.834238074270484, 53.87878953760269],
    ("tab", 2): [-57.1877723451867, -14.138201562726602, 27.619468442905347, 52.59883064147123],
    ("tab", 3): [-57.29857144529975, -13.968967324526782, 27.555635808653044, 52.59622893623799],
    ("rho_ab", 2): [-65.53368421679639, -16.705023803675072, 31.14559815155245, 61.79798049603554],
    ("rho_ab", 3): [-65.50099922147926, -16.679046043882174, 31.129154081038568, 61.75259222333691],
    ("rho_rk", 2): [-37.11566939908394, -9.430329435635414, 17.807512082017873, 33.61302542731954],
    ("rho_rk", 3): [-31.203609012016706, -9.606800103165373, 17.98843356160042, 27.12335342650366],
}


@pytest.mark.parametrize(("variant", "order"), AUTHORS)
def test_is_the_authors(wave, start, variant: str, order: int) -> None:
    found = sample(wave, noise=start, sampler=DEIS(order, variant), steps=10).flatten()
    golden = torch.tensor(AUTHORS[variant, order], dtype=torch.float64)
    torch.testing.assert_close(found, golden, rtol=1e-9 if variant == "rho_rk" else 1e-5, atol=0)


@pytest.mark.parametrize(
    ("variant", "order", "low"),
    [
        ("tab", 1, 1.85),
        ("tab", 2, 2.6),
        ("tab", 3, 3.3),
        ("rho_ab", 1, 1.8),
        ("rho_ab", 2, 2.5),
        ("rho_ab", 3, 3.2),
        ("log_rho_ab", 2, 2.6),
        ("rho_rk", 0, 0.9),
        ("rho_rk", 1, 1.9),
        ("rho_rk", 2, 2.8),
        ("rho_rk", 3, 3.8),
    ],
)
def test_order_of_convergence(bench, variant: str, order: int, low: float) -> None:
    counts = (48, 96)
    errors = [
        rms(sample(bench.denoiser, noise=bench.noise, sampler=DEIS(order, variant, steps=n)), bench.exact)
        for n in counts
    ]
    assert low <= order_fit(errors, counts) <= order + 1.35


@pytest.mark.parametrize("variant", ["tab", "rho_ab", "log_rho_ab", "rho_rk"])
def test_order_zero_is_ddim(bench, variant: str) -> None:
    ddim = sample(bench.denoiser, noise=bench.noise, sampler=DDIM(grid="quadratic"), steps=12)
    deis = sample(bench.denoiser, noise=bench.noise, sampler=DEIS(0, variant), steps=12)
    torch.testing.assert_close(deis, ddim, rtol=1e-6, atol=1e-6)


def test_coefficients_are_those_of_ddim_when_the_noise_does_not_change() -> None:
    """Lagrange polynomials sum to one, so every row of weights sums to DDIM's single weight."""
    schedule = VPLinear()
    times = (1.0, 0.7, 0.45, 0.2, 0.05, 0.001)
    first = DEIS(0).plan(schedule, times)
    for variant in ("tab", "rho_ab", "log_rho_ab"):
        for (row,), (ddim,) in zip(DEIS(3, variant).plan(schedule, times), first):
            assert sum(row.weights) == pytest.approx(ddim.weights[0], rel=1e-9)
            assert row.scale == pytest.approx(ddim.scale)
    lengths = [len(row.weights) for (row,) in DEIS(3).plan(schedule, times)]
    assert lengths == [1, 2, 3, 4, 4]


def test_works_on_discrete_levels(bench) -> None:
    schedule = DiscreteVP.linear(1000)
    denoiser = circle().denoiser(schedule)
    exact = denoiser.solve(bench.noise)
    assert rms(sample(denoiser, noise=bench.noise, sampler="deis", nfe=64), exact) < 0.05


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("order", lambda: DEIS(4)),
        ("order", lambda: DEIS(-1)),
        ("variant", lambda: DEIS(2, "ab")),
        ("quad", lambda: DEIS(2, quad=1)),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_ends_of_the_grid_where_a_level_vanishes(bench) -> None:
    denoiser = circle().denoiser(FlowMatching(T=1.0))
    with pytest.raises(InputError, match="alpha=0"):
        sample(denoiser, noise=bench.noise, sampler=DEIS(grid=(1.0, 0.5, 0.1)))
    with pytest.raises(InputError, match="sigma=0"):
        sample(denoiser, noise=bench.noise, sampler=DEIS(grid=(0.9, 0.5, 0.0)))
