"""Samplers behind k-diffusion's calling convention, against its published formulas written out plainly."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.errors import InputError
from hasten.diffusion import EDM, Denoiser, k_diffusion, sample
from hasten.numerics import time_grid
from hasten.numerics.mixture import circle

MIXTURE = circle()


def model(x: Tensor, sigma: Tensor, scale: float = 1.0) -> Tensor:
    """The exact denoiser of the standard mixture."""
    assert sigma.shape == x.shape[:1]
    return scale * MIXTURE.x0(x, 1.0, sigma)


def karras(count: int = 12, low: float = 0.02, high: float = 20.0) -> Tensor:
    ramp = torch.linspace(0, 1, count, dtype=torch.float64)
    sigmas = (high ** (1 / 7) + ramp * (low ** (1 / 7) - high ** (1 / 7))) ** 7
    return torch.cat((sigmas, torch.zeros(1, dtype=torch.float64)))


def start(sigmas: Tensor) -> Tensor:
    noise = torch.randn(16, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    return sigmas[0] * noise


def euler(x: Tensor, sigmas: Tensor) -> Tensor:
    """`x + (x - D)/sigma (sigma' - sigma)`: Euler's method on `dx/dsigma = (x - D)/sigma`."""
    for s, t in pairwise(sigmas):
        x = x + (x - model(x, s.expand(len(x)))) / s * (t - s)
    return x


def dpmpp_2m(x: Tensor, sigmas: Tensor) -> Tensor:
    """DPM-Solver++(2M) in lambda = -log sigma."""
    old: Tensor | None = None
    last = 0.0
    for s, t in pairwise(sigmas.tolist()):
        now = model(x, x.new_full((len(x),), s))
        if t == 0.0:
            return now
        h = math.log(s / t)
        slope = now if old is None else now + h / (2.0 * last) * (now - old)
        x = t / s * x - math.expm1(-h) * slope
        old, last = now, h
    return x


@pytest.mark.parametrize(
    ("name", "hyper", "formula", "last"),
    [
        ("ddim", {}, euler, 0.0),
        ("ddim", {}, euler, 0.02),
        ("dpmpp-2m", {}, dpmpp_2m, 0.0),
        ("dpmpp-2m", {"lower_order_final": False}, dpmpp_2m, 0.02),
    ],
)
def test_samples_are_those_of_the_published_formulas(
    name: str, hyper: dict[str, Any], formula: Callable[[Tensor, Tensor], Tensor], last: float
) -> None:
    sigmas = karras()
    sigmas = sigmas if last == 0.0 else sigmas[:-1]
    found = k_diffusion(name, **hyper)(model, start(sigmas), sigmas)
    torch.testing.assert_close(found, formula(start(sigmas), sigmas), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("name", [c.name for c in hasten.methods("diffusion") if "sample" in c.kinds and not c.needs])
def test_every_sampler_ends_at_zero(name: str) -> None:
    sigmas = karras(24)
    found = k_diffusion(name)(model, start(sigmas), sigmas)
    exact = MIXTURE.denoiser(EDM(T=20.0, t_min=0.02)).solve(start(sigmas))
    assert float((found - exact).norm(dim=1).median()) < 0.5
    assert k_diffusion(name)(model, start(sigmas), sigmas[:-1]).shape == (16, 2)
    one_step = k_diffusion(name)(model, start(sigmas), sigmas[[0, -1]])
    if name != "accelerated-ddim":
        torch.testing.assert_close(one_step, model(start(sigmas), sigmas[:1].expand(16)))


def test_callback_and_arguments_reach_the_model() -> None:
    seen: list[dict[str, Any]] = []
    sigmas = karras(6)
    x = start(sigmas)
    found = k_diffusion("dpm-solver-2")(model, x, sigmas.float(), {"scale": 0.5}, seen.append, True)
    assert [told["i"] for told in seen] == [0, 1, 2, 3, 4, 5]
    assert [told["sigma"] for told in seen] == pytest.approx(sigmas[:-1].tolist(), rel=1e-6)
    assert seen[0]["x"] is x
    torch.testing.assert_close(seen[0]["denoised"], model(x, sigmas[:1].expand(16), 0.5))
    torch.testing.assert_close(found, model(seen[-1]["x"], sigmas[5:6].expand(16), 0.5), atol=1e-6, rtol=1e-5)


def test_random_samplers_take_a_generator_per_sample() -> None:
    sigmas = karras(6)
    run = k_diffusion("ddim", eta=1.0)
    make = lambda: [torch.Generator().manual_seed(i) for i in range(16)]  # noqa: E731
    whole = run(model, start(sigmas), sigmas, generator=make())
    parts = [run(model, start(sigmas)[i : i + 4], sigmas, generator=make()[i : i + 4]) for i in range(0, 16, 4)]
    torch.testing.assert_close(torch.cat(parts), whole, atol=1e-12, rtol=1e-12)


def test_a_model_in_the_manner_of_k_diffusion_is_a_denoiser() -> None:
    denoiser = Denoiser.from_k_diffusion(model, 0.02, 20.0, scale=0.5)
    x = start(karras())
    assert denoiser.schedule == EDM(T=20.0, t_min=0.02)
    torch.testing.assert_close(denoiser.x0(x, 3.0), model(x, x.new_full((16,), 3.0), 0.5))
    plain = Denoiser.from_k_diffusion(model, 0.02, 20.0)
    grid = time_grid.karras(plain.schedule, 11)
    torch.testing.assert_close(
        sample(plain, noise=x, sampler="dpmpp-2s", grid=grid), k_diffusion("dpmpp-2s")(model, x, grid)
    )
    labelled = Denoiser.from_k_diffusion(lambda x, sigma, cond: MIXTURE.x0(x, 1.0, sigma, cond), 0.02, 20.0)
    labels = torch.full((16,), 2)
    torch.testing.assert_close(labelled.given(labels).x0(x, 3.0), MIXTURE.x0(x, 1.0, 3.0, labels))


@pytest.mark.parametrize(
    ("match", "act"),
    [
        ("decrease strictly", lambda: k_diffusion()(model, torch.ones(1, 2), [1.0, 2.0, 0.0])),
        ("decrease strictly", lambda: k_diffusion()(model, torch.ones(1, 2), [1.0])),
        ("decrease strictly", lambda: k_diffusion()(model, torch.ones(1, 2), [1.0, -1.0])),
        ("no sampler", lambda: k_diffusion("cfg")),
        ("unknown method", lambda: k_diffusion("heun")),
        ("model must be", lambda: Denoiser.from_k_diffusion(3)),  # type: ignore[arg-type]
    ],
)
def test_refuses(match: str, act: Callable[[], Any]) -> None:
    with pytest.raises(InputError, match=match):
        act()
