"""Classifier-free guidance and CFG++: the authors' numbers, every sampler, counting, refusals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.catalogue import problem
from hasten.core.errors import InputError, MismatchError
from hasten.core.registry import get
from hasten.core.run import run
from hasten.diffusion import (
    CFG,
    DDIM,
    CFGPlusPlus,
    Denoiser,
    DPMSolver,
    GuidedDenoiser,
    VPLinear,
    guided_invert,
    sample,
)
from hasten.numerics import time_grid
from hasten.numerics.mixture import circle

# The authors' `ddim`, `ddim_cfg++` and its inversion (CFGpp-diffusion/CFGpp, latent_diffusion.py), float64, on the toy
# network, 10 steps. Their last step goes from level 0 to level 0 and is left out; their inversion begins with it.
LEVELS = tuple(range(900, -1, -100))
AUTHORS = {
    "ddim": [-0.8585369795550543, -0.8585370401482411, -0.858537031154147, 1.9204679268541431],
    "ddim_cfg++": [-1.1257924691033194, -0.6135522823174222, -0.43429921918398734, 2.209453520327458],
    "inversion": [-1.5929828724959454, 0.5132849434557669, 0.6062669799860336, 0.645335502152031],
}
SAMPLERS = ["ddim", "dpm-solver-2", "dpm-solver-3", "dpm-solver-fast", "dpmpp-2m", "deis", "deis-rho-rk"]


@pytest.mark.parametrize(("name", "guidance"), [("ddim", CFG(7.5)), ("ddim_cfg++", CFGPlusPlus(0.6))])
def test_trajectories_are_the_authors(toy, start, name: str, guidance: Any) -> None:
    found = sample(toy, noise=start, sampler=DDIM(grid=LEVELS), guidance=guidance)
    torch.testing.assert_close(found.flatten(), torch.tensor(AUTHORS[name], dtype=torch.float64), atol=1e-9, rtol=0)


def test_inversion_is_the_authors(toy, start) -> None:
    conditional, unconditional = toy.eps(start, 0.0), toy.given(torch.zeros(2)).eps(start, 0.0)
    first = start + toy.schedule.sigma(0.0) * 0.6 * (conditional - unconditional)
    found = guided_invert(toy, first, CFGPlusPlus(0.6), grid=LEVELS)
    expected = torch.tensor(AUTHORS["inversion"], dtype=torch.float64)
    torch.testing.assert_close(found.flatten(), expected, atol=1e-9, rtol=0)


@pytest.mark.parametrize("sampler", [*SAMPLERS, "paradigms", "dpm-solver-adaptive"])
def test_every_sampler_follows_cfg(six, sampler: str) -> None:
    """The same as with a network that is guided inside."""

    def inside(x: Tensor, t: Tensor) -> Tensor:
        unconditional = six.denoiser.given(None).eps(x, t)
        labels = six.denoiser.cond.repeat(len(x) // 16)
        return unconditional + 3.0 * (six.denoiser.given(labels).eps(x, t) - unconditional)

    expected = sample(Denoiser(inside, VPLinear()), noise=six.noise, sampler=sampler, nfe=12)
    found = sample(six.denoiser, noise=six.noise, sampler=sampler, nfe=24, guidance=CFG(3.0))
    torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_ends_of_the_scales(six, sampler: str) -> None:
    def draw(denoiser: Denoiser, nfe: int, guidance: Any = None) -> Tensor:
        return sample(denoiser, noise=six.noise, sampler=sampler, nfe=nfe, guidance=guidance)

    unconditional = draw(six.denoiser.given(None), 12)
    for guidance in (CFG(0.0), CFGPlusPlus(0.0)):
        torch.testing.assert_close(draw(six.denoiser, 24, guidance), unconditional)
    torch.testing.assert_close(draw(six.denoiser, 24, CFG(1.0)), draw(six.denoiser, 12))
    strong = draw(six.denoiser, 24, CFGPlusPlus(1.0))
    assert bool(strong.isfinite().all())
    assert float((strong - unconditional).abs().max()) > 0.1


def test_first_order_solvers_are_ddim_under_cfgpp(six) -> None:
    grid = time_grid.make(six.denoiser.schedule, 10, "quadratic")
    expected = sample(six.denoiser, noise=six.noise, sampler=DDIM(grid=grid), guidance=CFGPlusPlus())
    for predict in ("eps", "x0"):
        solver = DPMSolver(1, predict=predict, grid=grid)
        torch.testing.assert_close(sample(six.denoiser, noise=six.noise, sampler=solver, guidance="cfgpp"), expected)


def test_multistep_solver_under_cfgpp(six) -> None:
    """In x/alpha: `D + e^-h (x - D_u) - (e^-h - 1)/(2r) (D - D_before)`, D guided, D_u unconditional."""
    schedule = six.denoiser.schedule
    grid = time_grid.make(schedule, 8, "quadratic")
    x, before, last = six.noise / schedule.alpha(grid[0]), None, 0.0
    for s, t in pairwise(grid):
        state = x * schedule.alpha(s)
        plain, pulled = six.denoiser.given(None).x0(state, s), six.denoiser.x0(state, s)
        data = plain + 0.4 * (pulled - plain)
        h = torch.tensor(schedule.lam(t) - schedule.lam(s), dtype=torch.float64)
        x = data + (-h).exp() * (x - plain)
        if before is not None:
            x = x - torch.expm1(-h) * (h / (2 * last)) * (data - before)
        before, last = data, h
    solver = DPMSolver(2, "multistep", "x0", lower_order_final=False, grid=grid)
    found = sample(six.denoiser, noise=six.noise, sampler=solver, guidance=CFGPlusPlus(0.4))
    torch.testing.assert_close(found, x * schedule.alpha(grid[-1]))


def test_two_evaluations_are_counted_and_planned(six) -> None:
    costs: dict[str, int] = {}
    sample(six.denoiser, noise=six.noise, sampler="ddim", steps=7, guidance=CFG(), costs=costs)
    assert costs == {"nfe": 14, "rounds": 14}
    sample(six.denoiser, noise=six.noise, sampler="dpm-solver-2", nfe=17, guidance="cfg", costs=costs)
    assert costs["nfe"] == 16
    sample(six.denoiser, noise=six.noise, sampler="ddim", guidance=CFG(), costs=costs)
    assert costs["nfe"] == 20


def test_conditions_that_are_tensors_share_a_call(toy, start) -> None:
    costs: dict[str, int] = {}
    sample(toy, noise=start, sampler="ddim", steps=5, guidance=CFG(), costs=costs)
    assert costs == {"nfe": 10, "rounds": 5}


def test_guided_denoiser_answers_every_quantity(six) -> None:
    guided = GuidedDenoiser(six.denoiser, CFG(4.0))
    for quantity in ("eps", "x0", "score", "velocity", "v"):
        conditional, unconditional = (getattr(made, quantity) for made in (six.denoiser, six.denoiser.given(None)))
        for t in (0.3, torch.linspace(0.1, 0.9, 16, dtype=torch.float64)):
            expected = unconditional(six.noise, t) + 4.0 * (conditional(six.noise, t) - unconditional(six.noise, t))
            torch.testing.assert_close(getattr(guided, quantity)(six.noise, t), expected, msg=quantity)


def test_guided_denoiser_has_an_exact_solution(six) -> None:
    guided = GuidedDenoiser(six.denoiser, CFG(2.0))
    found = sample(six.denoiser, noise=six.noise, sampler="dpm-solver-3", nfe=240, guidance=CFG(2.0))
    torch.testing.assert_close(found, guided.solve(six.noise), atol=1e-3, rtol=0)
    with pytest.raises(InputError, match="no differential equation"):
        GuidedDenoiser(six.denoiser, CFGPlusPlus()).solve(six.noise)


def test_guidance_without_a_condition_is_refused_before_any_evaluation() -> None:
    def network(x: Tensor, t: Tensor) -> Tensor:
        raise AssertionError("evaluated")

    for guidance in ("cfg", CFGPlusPlus()):
        with pytest.raises(InputError, match="conditional model"):
            sample(Denoiser(network, VPLinear()), (2, 2), guidance=guidance)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("guidance must be a kind", {"guidance": "ddim"}),
        ("guidance must be", {"guidance": 7.5}),
        ("a guided step needs 2", {"guidance": "cfg", "nfe": 1}),
        ("noises again.*paradigms", {"guidance": "cfgpp", "sampler": "paradigms"}),
        ("noises again.*adaptive", {"guidance": "cfgpp", "sampler": "dpm-solver-adaptive"}),
    ],
)
def test_bad_combinations_are_refused(match: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=match):
        sample(circle().denoiser(VPLinear()).given(torch.tensor([0, 1])), (2, 2), **options)


def test_a_guided_denoiser_samples_by_itself(six) -> None:
    guided = GuidedDenoiser(six.denoiser, CFGPlusPlus())
    expected = sample(six.denoiser, noise=six.noise, sampler="dpmpp-2m", steps=6, guidance=CFGPlusPlus())
    assert torch.equal(sample(guided, noise=six.noise, sampler="dpmpp-2m", steps=6), expected)
    with pytest.raises(InputError, match="noises again"):
        sample(guided, noise=six.noise, sampler="paradigms", steps=6)


def test_scales_at_the_door() -> None:
    with pytest.raises(InputError, match="w must be"):
        CFG(float("nan"))
    for lam in (-0.1, 1.5):
        with pytest.warns(UserWarning, match=r"lam=.* outside"):
            assert CFGPlusPlus(lam).lam == lam


def test_inversion_at_the_door(six) -> None:
    with pytest.raises(InputError, match="samples must be"):
        guided_invert(six.denoiser, torch.zeros(3), CFG())
    with pytest.raises(InputError, match="steps"):
        guided_invert(six.denoiser, six.noise, CFG(), steps=0)


def test_guidance_races_where_there_is_a_condition() -> None:
    trace = run(
        get("diffusion.cfg").make(w=2.0), problem("gaussian-mixture-classes:batch=16"), budget="48calls", target=-1.0
    )
    assert trace.status == "budget", trace.message
    assert trace.metric[-1] < 0.3 * trace.metric[0]
    with pytest.raises(MismatchError, match="condition"):
        run(get("diffusion.cfg").make(), problem("gaussian-mixture-score"))
