"""ParaDiGMS: exact in the limit, few rounds at a tolerance, honest about its evaluations."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.kinds.sample import Sampling
from hasten.diffusion import FlowMatching, ParaDiGMS, VPLinear, sample
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rms


def parallel(bench, steps: int, **options: Any) -> tuple[Tensor, dict[str, int]]:
    costs: dict[str, int] = {}
    out = sample(bench.denoiser, noise=bench.noise, sampler="paradigms", steps=steps, costs=costs, **options)
    return out, costs


def test_few_rounds_close_to_ddim(bench) -> None:
    sequential = sample(bench.denoiser, noise=bench.noise, sampler="ddim", steps=100, grid="uniform")
    out, costs = parallel(bench, 100, window=20, tol=0.01)
    assert costs["rounds"] <= 20
    assert rms(out, sequential) <= 5e-3
    assert 100 <= costs["nfe"] <= 300
    _, whole = parallel(bench, 100, window=100, tol=1e-3)
    assert whole["rounds"] <= 15


@pytest.mark.parametrize("base", ["ddim", "dpm-solver-2", "ddpm"])
@pytest.mark.parametrize("window", [1, 7, 40])
def test_limit_is_the_base_sampler(bench, base: str, window: int) -> None:
    def generator() -> torch.Generator:
        return torch.Generator().manual_seed(3)

    name, options = {"ddpm": ("ddim", {"eta": 1.0})}.get(base, (base, {}))
    sequential = sample(
        bench.denoiser, noise=bench.noise, sampler=name, steps=40, grid="uniform", generator=generator(), **options
    )
    out, costs = parallel(bench, 40, base=base, window=window, tol=1e-300, generator=generator())
    torch.testing.assert_close(out, sequential, rtol=0, atol=1e-10)
    assert costs["rounds"] <= 40 * ParaDiGMS(base).evaluations


def test_window_of_one_is_sequential(bench) -> None:
    out, costs = parallel(bench, 30, window=1, tol=10.0)
    sequential = sample(bench.denoiser, noise=bench.noise, sampler="ddim", steps=30, grid="uniform")
    torch.testing.assert_close(out, sequential, rtol=0, atol=1e-10)
    assert costs == {"nfe": 30, "rounds": 30}


def test_tolerance_trades_rounds_for_accuracy(bench) -> None:
    sequential = sample(bench.denoiser, noise=bench.noise, sampler="ddim", steps=60, grid="uniform")
    rounds, errors = [], []
    for tol in (0.3, 0.03, 0.003):
        out, costs = parallel(bench, 60, tol=tol)
        rounds.append(costs["rounds"])
        errors.append(rms(out, sequential))
    assert rounds == sorted(rounds)
    assert errors == sorted(errors, reverse=True)


def test_max_iter_bounds_the_rounds(bench) -> None:
    _, costs = parallel(bench, 60, window=20, tol=1e-9, max_iter=2)
    assert costs["rounds"] == 4


@given(nfe=st.integers(2, 80), window=st.integers(1, 30), base=st.sampled_from(["ddim", "dpm-solver-2", "ddpm"]))
@settings(max_examples=25)
def test_arrives_with_what_it_may_spend(nfe: int, window: int, base: str) -> None:
    costs: dict[str, int] = {}
    noise = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    method = ParaDiGMS(base, window, tol=1e-9)
    out = sample(circle().denoiser(VPLinear()), noise=noise, sampler=method, nfe=nfe, costs=costs)
    assert costs["nfe"] <= nfe
    assert bool(out.isfinite().all())


def test_holds_no_more_states_than_the_window(bench) -> None:
    method = ParaDiGMS(window=6, tol=0.05, steps=40)
    instance = Sampling(bench.denoiser, bench.noise, metric=lambda x: 0.0)
    state = method.init(instance, torch.Generator())
    seen = [state.begin]
    while not method.done(state):
        state = method.step(instance, state)
        seen.append(state.begin)
        assert len(state.slots) <= 7
        assert torch.equal(state.x, state.slots[0])
    assert seen == sorted(set(seen)), "every round makes at least one more point final"
    assert seen[-1] == 40


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("window", {"window": 0}),
        ("tol", {"tol": 0.0}),
        ("tol", {"tol": -1.0}),
        ("tol", {"tol": math.nan}),
        ("base", {"base": "deis"}),
        ("max_iter", {"max_iter": 0}),
    ],
)
def test_refuses_bad_arguments(match: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=match):
        ParaDiGMS(**options)


def test_ends_of_the_grid_where_a_level_vanishes(bench) -> None:
    denoiser = circle().denoiser(FlowMatching())
    with pytest.raises(InputError, match="alpha or sigma is 0"):
        sample(denoiser, noise=bench.noise, sampler=ParaDiGMS(grid=(0.9, 0.5, 0.0)))
