"""The kind `sample`: what it counts, how a run climbs its rungs, what it refuses."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.errors import InputError, ProblemError
from hasten.core.kinds.sample import RUNGS, Sampling, sampling
from hasten.core.run import run
from hasten.numerics.denoiser import Denoiser
from hasten.numerics.mixture import Gaussian, circle
from hasten.numerics.noise import VPLinear

GAUSSIAN = Gaussian([0.3, 1.5])


def denoiser() -> Denoiser:
    return GAUSSIAN.denoiser(VPLinear())


def test_counts_evaluations_per_sample_and_rounds() -> None:
    instance = Sampling(denoiser(), torch.zeros(4, 2), metric=lambda x: 0.0)
    instance.denoiser.eps(torch.zeros(4, 2), 0.5)
    instance.denoiser.eps(torch.zeros(12, 2), torch.full((12,), 0.5))
    assert instance.calls == {"nfe": 4}
    assert instance.rounds == 2
    instance.calls.clear()
    instance.denoiser.split(torch.zeros(4, 2), 0.5)
    assert (instance.calls["nfe"], instance.rounds) == (1, 1)


def test_instances_of_one_denoiser_count_apart() -> None:
    shared = denoiser()
    first, second = (Sampling(shared, torch.zeros(1, 2), metric=lambda x: 0.0) for _ in range(2))
    first.denoiser.eps(torch.zeros(1, 2), 0.5)
    assert first.calls == {"nfe": 1}
    assert not second.calls


def test_trace_is_error_against_evaluations() -> None:
    problem = sampling("mine", denoiser(), (32, 2), rungs=(4, 8, 16, 32))
    trace = run(hasten.get("diffusion.ddim").make(), problem)
    assert trace.calls == {"nfe": [4, 8, 16, 32]}
    assert trace.column("calls") == trace.steps == [4, 8, 16, 32]
    assert trace.metric == sorted(trace.metric, reverse=True)
    assert trace.metric[2] / trace.metric[3] == pytest.approx(2.0, rel=0.15)


def test_run_ends_at_the_first_rung_that_meets_the_target() -> None:
    problem = sampling("mine", denoiser(), (32, 2), rungs=(4, 8, 16, 32), target=1.0)
    trace = run(hasten.get("diffusion.ddim").make(), problem)
    assert trace.status == "reached"
    assert len(trace.steps) == 1


@pytest.mark.parametrize(("budget", "last"), [(16, 16), ("20calls", 16), ("7calls", 4), (None, 32)])
def test_budget_limits_the_rungs(budget: Any, last: int) -> None:
    problem = sampling("mine", denoiser(), (8, 2), rungs=(4, 8, 16, 32))
    assert run(hasten.get("diffusion.ddim").make(), problem, budget=budget).calls["nfe"][-1] == last


def test_metric_or_reference_of_your_own() -> None:
    exact = sampling("mine", denoiser(), (64, 2), reference=lambda noise: GAUSSIAN.flow(noise, VPLinear()))
    default = sampling("mine", denoiser(), (64, 2))
    start = exact.build(3).noise
    assert exact.build(3).metric(start) == pytest.approx(default.build(3).metric(start), rel=1e-5)
    own = sampling("mine", denoiser(), (64, 2), metric=lambda x: float(x.mean().abs()), measures="bias")
    assert own.build(0).metric(torch.full((1, 2), 2.0)) == 2.0
    assert own.measures == "bias"


def test_start_noise_belongs_to_the_seed_and_the_schedule() -> None:
    problem = sampling("mine", denoiser(), (1000, 2), metric=lambda x: 0.0)
    first, again, other = (problem.build(seed).noise for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert float(first.std()) == pytest.approx(VPLinear().noise_scale, rel=0.1)
    given = sampling("mine", denoiser(), noise=lambda seed: torch.full((2, 2), float(seed)), metric=lambda x: 0.0)
    assert given.build(5).noise.tolist() == [[5.0, 5.0], [5.0, 5.0]]


def test_reference_is_computed_once_per_seed() -> None:
    calls: list[int] = []

    def reference(noise: Tensor) -> Tensor:
        calls.append(1)
        return noise

    problem = sampling("mine", denoiser(), (4, 2), reference=reference)
    for seed in (0, 0, 1, 0):
        instance = problem.build(seed)
        assert instance.metric(instance.noise) == 0.0
    assert len(calls) == 2


def test_defaults() -> None:
    problem = sampling("mine", denoiser(), (4, 2))
    assert problem.kind == "sample"
    assert problem.baseline == "diffusion.ddim"
    assert problem.budget == RUNGS[-1]
    assert problem.build(0).horizon is None


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("shape", lambda: sampling("mine", denoiser())),
        ("shape", lambda: sampling("mine", denoiser(), (4, 2), noise=lambda seed: torch.zeros(4, 2))),
        ("metric", lambda: sampling("mine", denoiser(), (4, 2), metric=lambda x: 0.0, reference=lambda x: x)),
        ("rungs", lambda: sampling("mine", denoiser(), (4, 2), rungs=())),
        ("rungs", lambda: sampling("mine", denoiser(), (4, 2), rungs=(8, 4))),
        ("rungs", lambda: sampling("mine", denoiser(), (4, 2), rungs=(0, 4))),
        ("noise", lambda: Sampling(denoiser(), torch.zeros(3), metric=lambda x: 0.0)),
        ("noise", lambda: Sampling(denoiser(), torch.zeros(0, 2), metric=lambda x: 0.0)),
        ("noise", lambda: Sampling(denoiser(), torch.zeros(2, 2, dtype=torch.int64), metric=lambda x: 0.0)),
    ],
)
def test_refuses_bad_input(match: str, make: Any) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_a_metric_that_is_not_finite_ends_the_run() -> None:
    problem = sampling("mine", denoiser(), (4, 2), metric=lambda x: math.nan)
    with pytest.raises(ProblemError):
        run(hasten.get("diffusion.ddim").make(), problem, budget=3)
    assert run(hasten.get("diffusion.ddim").make(), problem).status == "diverged"


def test_mixture_metric_is_the_distance_between_samples() -> None:
    problem = sampling("mine", circle().denoiser(VPLinear()), (16, 2), reference=lambda noise: noise)
    instance = problem.build(0)
    moved = instance.noise + torch.tensor([3.0, 4.0])
    assert instance.metric(moved) == pytest.approx(5.0, rel=1e-5)


def test_a_single_precision_network_is_measured_against_its_exact_samples() -> None:
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(2, 16), torch.nn.Tanh(), torch.nn.Linear(16, 2))
    model = Denoiser(lambda x, t: network(x), VPLinear())
    trace = run(hasten.get("diffusion.dpm-solver-2").make(), sampling("mine", model, (8, 2), rungs=(8, 32)))
    assert trace.status != "error", trace.message
    assert trace.metric[1] < 0.2 * trace.metric[0]


def test_a_denoiser_may_depend_on_the_seed_and_is_not_made_before_it_is_needed() -> None:
    made: list[int] = []

    def shifted(seed: int) -> Denoiser:
        made.append(seed)
        return Gaussian([0.3 + seed, 1.5]).denoiser(VPLinear())

    problem = sampling("mine", shifted, (4, 2), rungs=(8,))
    assert made == []
    spread = [float(problem.build(seed).denoiser.solve(problem.build(0).noise)[:, 0].std()) for seed in (0, 4)]
    assert spread[1] > 2 * spread[0]
