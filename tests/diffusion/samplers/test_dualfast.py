"""DualFast: the written-out correction, its base solvers, both signs, where it stops paying, the split of errors."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, DEIS, DPMSolver, DualFast, FlowMatching, VPLinear, error_split, sample
from hasten.numerics import time_grid
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rms

BASES = [DDIM(), DPMSolver(2), DPMSolver(3), DPMSolver(2, "multistep", "x0"), DEIS(2)]
bases = pytest.mark.parametrize("base", BASES, ids=["ddim", "2s", "3s", "2m++", "deis"])


def error(bench, made, steps: int) -> float:
    return rms(sample(bench.denoiser, noise=bench.noise, sampler=made, steps=steps), bench.exact)


@pytest.mark.parametrize("ref", ["first", "prev"])
def test_is_the_written_out_rule_on_ddim(wave, start, ref: str) -> None:
    schedule = VPLinear()
    times = time_grid.quadratic(schedule, 4)
    x, kept = start, None
    for s, t in pairwise(times):
        eps = wave.eps(x, s)
        c = 0.4 * (s - times[-1]) / (times[0] - times[-1])
        moved = eps if kept is None else (1 + c) * eps - c * kept
        if kept is None or ref == "prev":
            kept = eps
        x0 = (x - schedule.sigma(s) * moved) / schedule.alpha(s)
        x = schedule.alpha(t) * x0 + schedule.sigma(t) * moved
    found = sample(wave, noise=start, sampler=DualFast(c0=0.4, ref=ref, steps=4))
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_higher_order_replaces_the_first_order_term_only(wave, start) -> None:
    """DPM-Solver-2: the difference of predictions stays raw, the inner state and the end see the corrected one."""
    schedule = VPLinear()
    times = (1.0, 0.6, 0.3)
    x, kept = start, None
    for i, (s, t) in enumerate(pairwise(times)):
        h = schedule.lam(t) - schedule.lam(s)
        middle = schedule.t_of_lam(schedule.lam(s) + h / 2)
        eps = wave.eps(x, s)
        c = 0.0 if i == 0 else 0.5 * (s - times[-1]) / (times[0] - times[-1])
        kept = eps if kept is None else kept
        moved = eps + c * (eps - kept)

        def first(end: float, x=x, s=s, moved=moved):
            grown = torch.expm1(torch.tensor(schedule.lam(end) - schedule.lam(s), dtype=torch.float64))
            return schedule.alpha(end) / schedule.alpha(s) * x - schedule.sigma(end) * grown * moved

        inner = wave.eps(first(middle), middle)
        grown = float(torch.expm1(torch.tensor(h, dtype=torch.float64)))
        x = first(t) - schedule.sigma(t) * grown * (inner - eps)
    found = sample(wave, noise=start, sampler=DualFast(DPMSolver(2), grid=times))
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


def test_data_prediction_is_corrected_as_its_noise(bench) -> None:
    """Of order 1 both predictions make the same step."""
    noise = sample(bench.denoiser, noise=bench.noise, sampler=DualFast(DPMSolver(1)), steps=6)
    data = sample(bench.denoiser, noise=bench.noise, sampler=DualFast(DPMSolver(1, predict="x0")), steps=6)
    torch.testing.assert_close(noise, data, rtol=1e-8, atol=1e-8)


@bases
def test_strength_zero_is_the_base(bench, base) -> None:
    costs: dict[str, int] = {}
    plain = sample(bench.denoiser, noise=bench.noise, sampler=replace(base, grid="quadratic"), steps=6)
    made = sample(bench.denoiser, noise=bench.noise, sampler=DualFast(base, c0=0.0), steps=6, costs=costs)
    torch.testing.assert_close(made, plain, rtol=1e-9, atol=1e-9)
    assert costs["nfe"] == 6 * base.evaluations


def test_pays_with_few_steps_and_in_one_direction(bench) -> None:
    for steps in (5, 8):
        plain = error(bench, DDIM(), steps)
        assert error(bench, DualFast(), steps) < 0.92 * plain
        assert error(bench, DualFast(sign=-1), steps) > plain


def test_leaves_an_error_that_more_steps_do_not_remove(bench) -> None:
    assert error(bench, DualFast(), 200) > 2 * error(bench, DDIM(), 200)


def test_split_of_errors(bench) -> None:
    network = circle(variance=0.2).denoiser(VPLinear())
    few = error_split(DDIM(), network, bench.denoiser, bench.noise, 5, reference_steps=200)
    many = error_split(DDIM(), network, bench.denoiser, bench.noise, 100, reference_steps=200)
    assert len(few.times) == len(few.discretisation) == len(few.approximation) == len(few.total) == 5
    assert few.times[-1] == VPLinear().t_min
    assert few.discretisation[-1] == pytest.approx(error(bench, DDIM(), 5) ** 2, rel=1e-3)
    assert few.approximation[-1] == pytest.approx(many.approximation[-1], rel=1e-3)
    assert few.discretisation[-1] > few.approximation[-1]
    assert many.discretisation[-1] < many.approximation[-1]
    itself = error_split(DDIM(), bench.denoiser, bench.denoiser, bench.noise, 5, reference_steps=50)
    assert max(itself.approximation) == 0.0
    assert itself.total == itself.discretisation


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("c0", lambda: DualFast(c0=1.5)),
        ("c0", lambda: DualFast(c0=-0.1)),
        ("ref", lambda: DualFast(ref="last")),
        ("sign", lambda: DualFast(sign=0)),
        ("decay", lambda: DualFast(decay="cosine")),
        ("deterministic", lambda: DualFast(DDIM(eta=1.0))),
    ],
)
def test_refusals(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_split_needs_one_schedule(bench) -> None:
    with pytest.raises(InputError, match="schedule"):
        error_split(DDIM(), circle().denoiser(FlowMatching()), bench.denoiser, bench.noise, 5)
