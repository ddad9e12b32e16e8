"""BDIA: undone exactly, second order at DDIM's cost, the published recursion, loud where rounding would win."""

from __future__ import annotations

import math
import warnings

import pytest
import torch

from hasten.core.errors import DivergedError, InputError
from hasten.diffusion import BDIA, Denoiser, FlowMatching, VPLinear, invert, sample
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rms
from hasten.numerics.time_grid import make


@pytest.mark.parametrize("steps", [1, 2, 10, 80])
@pytest.mark.parametrize("base", ["ddim", "edm", "dpmpp"])
def test_round_trips_are_exact(bench, steps: int, base: str) -> None:
    bdia = BDIA(base=base, steps=steps)
    pair = bdia.sample(bench.denoiser, bench.noise)
    back = bdia.invert(bench.denoiser, pair)
    torch.testing.assert_close(back.x, bench.noise, rtol=0, atol=1e-10)
    data = circle().sample(64, torch.Generator().manual_seed(3))
    latent = bdia.invert(bench.denoiser, data)
    torch.testing.assert_close(bdia.sample(bench.denoiser, latent).x, data, rtol=0, atol=1e-10)


def test_pair_is_what_sample_returns(bench) -> None:
    pair = BDIA(steps=12).sample(bench.denoiser, bench.noise)
    assert torch.equal(pair.x, sample(bench.denoiser, noise=bench.noise, sampler="bdia", steps=12))
    assert not torch.equal(pair.x, pair.neighbour)


def test_rounding_is_amplified_below_gamma_one(bench) -> None:
    def miss(steps: int) -> float:
        bdia = BDIA(gamma=0.5, steps=steps)
        return float(
            (bdia.invert(bench.denoiser, bdia.sample(bench.denoiser, bench.noise)).x - bench.noise).abs().max()
        )

    assert miss(10) <= 1e-11
    assert 1e-12 <= miss(20) <= 1e-7
    with pytest.warns(UserWarning, match=r"gamma=0.5 over 60 steps amplifies rounding by 1e18"):
        assert miss(60) > 1e-2


def test_single_precision_is_warned_of_earlier(bench) -> None:
    data = circle().sample(8).float()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        BDIA(gamma=0.5, steps=10).invert(bench.denoiser, data)
        BDIA(gamma=1.0, steps=200).invert(bench.denoiser, data)
        with pytest.raises(UserWarning, match="amplifies rounding"):
            BDIA(gamma=0.5, steps=14).invert(bench.denoiser, data)


def test_second_order_at_ddims_cost(bench) -> None:
    errors = {
        (name, steps): rms(
            sample(bench.denoiser, noise=bench.noise, sampler=name, steps=steps, grid="quadratic"), bench.exact
        )
        for name in ("bdia", "ddim")
        for steps in (40, 80)
    }
    assert errors["bdia", 40] <= 0.1 * errors["ddim", 40]
    assert errors["bdia", 80] <= 0.3 * errors["bdia", 40]


@pytest.mark.parametrize("base", ["edm", "dpmpp"])
def test_other_bases_are_of_second_order_too(bench, base: str) -> None:
    def miss(steps: int) -> float:
        return rms(BDIA(base=base, steps=steps).sample(bench.denoiser, bench.noise).x, bench.exact)

    costs: dict[str, int] = {}
    sample(bench.denoiser, noise=bench.noise, sampler=BDIA(base=base), steps=5, costs=costs)
    assert costs["nfe"] == 2 + 4 * 3
    assert miss(80) <= 0.1 * miss(20)
    assert miss(80) <= 2e-3


def test_gamma_zero_is_the_base_sampler(bench) -> None:
    plain = sample(bench.denoiser, noise=bench.noise, sampler="ddim", steps=9)
    mine = sample(bench.denoiser, noise=bench.noise, sampler=BDIA(gamma=0.0), steps=9)
    torch.testing.assert_close(mine, plain, rtol=0, atol=1e-12)


@pytest.mark.parametrize("gamma", [1.0, 0.5])
def test_published_update(wave, start, gamma: float) -> None:
    """The published sampler's line for `x_prev`, written out in its own quantities (alpha bar, predicted x_0).

    The published text-to-image code differs in one place: as last state it remembers `z_{i+1}` corrected by half, with
    which a step can no longer be undone.
    """
    schedule = VPLinear()
    times = make(schedule, 6, "quadratic")
    alpha_bar = [schedule.alpha(t) ** 2 for t in times]
    x, last = start, None
    for i in range(6):
        noise = wave.eps(x, times[i])
        clean = (x - math.sqrt(1 - alpha_bar[i]) * noise) / math.sqrt(alpha_bar[i])
        forward = math.sqrt(alpha_bar[i + 1]) * clean + math.sqrt(1 - alpha_bar[i + 1]) * noise - x
        if last is None:
            x, last = x + forward, x
        else:
            backward = math.sqrt(alpha_bar[i - 1]) * clean + math.sqrt(1 - alpha_bar[i - 1]) * noise - x
            x, last = last - (1 - gamma) * (last - x) - gamma * backward + forward, x
    mine = sample(wave, noise=start, sampler="bdia", steps=6, gamma=gamma)
    torch.testing.assert_close(mine, x, rtol=0, atol=1e-12)


def test_inversion_by_name_is_the_pairs_noise(bench) -> None:
    data = circle().sample(8, torch.Generator().manual_seed(0))
    costs: dict[str, int] = {}
    noise = invert(bench.denoiser, data, 15, "bdia-inversion", costs=costs)
    torch.testing.assert_close(noise, BDIA(steps=15).invert(bench.denoiser, data).x, rtol=0, atol=1e-12)
    assert costs == {"nfe": 15, "rounds": 15}
    exact = rms(bench.denoiser.solve(noise), data)
    plain = rms(bench.denoiser.solve(invert(bench.denoiser, data, 15, "ddim-inversion", grid="quadratic")), data)
    assert exact < 0.5 * plain


@pytest.mark.parametrize("base", ["ddim", "edm", "dpmpp"])
def test_straight_paths_to_clean_data_and_images(base: str) -> None:
    denoiser = Denoiser(lambda x, t: 0.2 * x.sin(), FlowMatching(t_min=0.0), "velocity")
    images = torch.randn(3, 2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    bdia = BDIA(base=base, steps=8, grid="uniform")
    latent = bdia.invert(denoiser, images)
    torch.testing.assert_close(bdia.sample(denoiser, latent).x, images, rtol=0, atol=1e-10)


@pytest.mark.parametrize("gamma", [-0.1, 1.1, math.nan, "half"])
def test_refuses_bad_gamma(gamma: object) -> None:
    with pytest.raises(InputError, match="gamma"):
        BDIA(gamma=gamma)  # type: ignore[arg-type]


def test_refuses_what_cannot_be_undone(bench) -> None:
    data = circle().sample(4)
    with pytest.raises(InputError, match="gamma must be above 0"):
        BDIA(gamma=0.0, steps=5).invert(bench.denoiser, data)
    with pytest.raises(InputError, match="gamma"):
        invert(bench.denoiser, data, 5, "bdia-inversion", gamma=0.0)
    for dtype in (torch.float16, torch.bfloat16):
        with pytest.raises(InputError, match="float32 or float64"):
            BDIA(steps=5).invert(bench.denoiser, data.to(dtype))
    with pytest.raises(InputError, match="give steps"):
        BDIA().invert(bench.denoiser, data)
    with pytest.raises(InputError, match="base"):
        BDIA(base="euler")


def test_a_broken_network_is_named() -> None:
    broken = Denoiser(lambda x, t: x * math.nan, VPLinear())
    with pytest.raises(DivergedError, match=r"inversion: .*nan or infinity"):
        BDIA(steps=5).invert(broken, circle().sample(4))
