"""D-ODE solvers: the fit's optimum, generalisation, bases, the rule itself, refusals."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, DEIS, DODE, Denoiser, DPMSolver, FlowMatching, VPLinear, sample
from hasten.numerics import time_grid
from hasten.numerics.mixture import circle
from hasten.numerics.reference import rms

FIT = torch.randn(100, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
BASES = [DDIM(), DPMSolver(2, "multistep"), DPMSolver(2, "multistep", "x0"), DEIS(1)]
bases = pytest.mark.parametrize("base", BASES, ids=["ddim", "2m", "2m++", "deis"])


def test_is_the_written_out_rule(wave, start) -> None:
    schedule = VPLinear()
    lambdas = (0.0, 0.5, -0.25, 0.1)
    times = time_grid.quadratic(schedule, 4)
    x, before = start, None
    for i, (s, t) in enumerate(pairwise(times)):
        d = wave.eps(x, s)
        moved = d if before is None else d + lambdas[i] * (d - before)
        x0 = (x - schedule.sigma(s) * moved) / schedule.alpha(s)
        x, before = schedule.alpha(t) * x0 + schedule.sigma(t) * moved, d
    found = sample(wave, noise=start, sampler=DODE(lambdas=lambdas, steps=4))
    torch.testing.assert_close(found, x, rtol=1e-9, atol=1e-9)


@bases
def test_without_lambdas_it_is_its_base(bench, base) -> None:
    plain = sample(bench.denoiser, noise=bench.noise, sampler=replace(base, grid="quadratic"), steps=8)
    for lambdas in (None, [0.0] * 8):
        same = sample(bench.denoiser, noise=bench.noise, sampler=DODE(base, lambdas), steps=8)
        torch.testing.assert_close(same, plain, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("steps", [5, 10])
def test_fit_carries_over_to_other_noise(bench, steps: int) -> None:
    solver = DODE().fit(bench.denoiser, FIT, steps=steps)
    costs: dict[str, int] = {}
    fitted = rms(sample(bench.denoiser, noise=bench.noise, sampler=solver, costs=costs), bench.exact)
    ddim = rms(sample(bench.denoiser, noise=bench.noise, sampler=DDIM(), steps=steps), bench.exact)
    assert costs["nfe"] == steps
    assert fitted < 0.5 * ddim


@bases
def test_lambda_is_the_least_squares_optimum(bench, base) -> None:
    """Any other value of one lambda takes its step further from the base solver's own finer result."""
    steps, substeps = 5, 6
    solver = DODE(base).fit(bench.denoiser, FIT, substeps, steps=steps)
    assert solver.lambdas is not None
    assert solver.lambdas[0] == 0.0
    states = [FIT]
    sample(bench.denoiser, noise=FIT, sampler=solver, callback=lambda state: states.append(state.x))
    fine = time_grid.quadratic(bench.denoiser.schedule, steps * substeps)
    for i in (1, 3):
        part = fine[i * substeps : (i + 1) * substeps + 1]
        goal = sample(bench.denoiser, noise=states[i], sampler=replace(base, grid=part))

        def loss(change: float, i: int = i, goal=goal) -> float:
            moved = list(solver.lambdas)  # type: ignore[arg-type]
            moved[i] += change
            seen: list[torch.Tensor] = []
            made = replace(solver, lambdas=moved)
            sample(bench.denoiser, noise=FIT, sampler=made, callback=lambda state: seen.append(state.x))
            return float((seen[i] - goal).square().sum())

        best, up, down = loss(0.0), loss(1e-3), loss(-1e-3)
        assert best < up
        assert best < down
        assert up - down == pytest.approx(0.0, abs=1e-3 * (up + down - 2 * best))


def test_given_times_and_other_schedules() -> None:
    schedule = FlowMatching()
    denoiser = circle().denoiser(schedule)
    times = (0.999, 0.8, 0.6, 0.4, 0.2, 0.05, 0.001)
    solver = DODE(grid=times).fit(denoiser, FIT)
    noise = torch.randn(64, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    exact = denoiser.solve(noise)
    plain = rms(sample(denoiser, noise=noise, sampler=DDIM(grid=times)), exact)
    assert rms(sample(denoiser, noise=noise, sampler=solver), exact) < 0.6 * plain


def test_fit_of_a_network_that_ignores_its_input_is_harmless() -> None:
    still = Denoiser(lambda x, t: torch.ones_like(x), VPLinear())
    assert DODE().fit(still, FIT, steps=4).lambdas == (0.0,) * 4


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("deterministic", lambda: DODE(DDIM(eta=0.5))),
        ("once per step", lambda: DODE(DPMSolver(2))),
        ("base", lambda: DODE("ddim")),  # type: ignore[arg-type]
        ("lambdas", lambda: DODE(lambdas=[float("nan")])),
        ("teacher_substeps", lambda: DODE().fit(circle().denoiser(VPLinear()), FIT, 0, steps=4)),
        ("give steps", lambda: DODE().fit(circle().denoiser(VPLinear()), FIT)),
        ("fit again", lambda: sample(circle().denoiser(VPLinear()), noise=FIT, sampler=DODE(lambdas=[0, 1]), steps=3)),
    ],
)
def test_refusals(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()
