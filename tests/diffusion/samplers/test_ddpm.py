"""Ancestral sampling: the published step, agreement with diffusers, its law, its ends."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.diffusion import CFG, DDIM, DDPM, VE, Denoiser, DiscreteVP, FlowMatching, ParaDiGMS, VPLinear, sample
from hasten.numerics import time_grid
from hasten.numerics.mixture import Gaussian, circle

# diffusers 0.42, DDPMScheduler ("fixed_small", no clipping) in float64, 1000 levels with float32 betas linear from 1e-4
# to 0.02, steps at 900, 800, ..., 0, the `ladder` network from `start`, noise from torch's generator with seed 0.
DIFFUSERS = [-0.0034112430692072545, 0.27043258559787503, -0.12492478298375911, -0.3620048188989407]
LEVELS = tuple(range(900, -1, -100))


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def scheduler(**options: Any) -> Any:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed (pip install hasten[bench])")
    kind = diffusers.DDIMScheduler if "set_alpha_to_one" in options else diffusers.DDPMScheduler
    made = kind(**options)
    made.betas = made.betas.double()
    made.alphas = 1.0 - made.betas
    made.alphas_cumprod = made.alphas.cumprod(0)
    made.one = torch.tensor(1.0, dtype=torch.float64)
    if "set_alpha_to_one" in options:
        made.final_alpha_cumprod = made.alphas_cumprod[0]
    made.set_timesteps(10)
    return made


def theirs(made: Any, bounded: Any, schedule: DiscreteVP, x: Tensor, **options: Any) -> Tensor:
    noise = seeded()
    for t in made.timesteps:
        rho = torch.tensor(schedule.rho(float(t)), dtype=torch.float64)
        x = made.step(bounded(x, rho), t, x, generator=noise, **options).prev_sample
    return x


def ladder_of(made: Any, bounded: Any) -> Denoiser:
    schedule = DiscreteVP(made.betas)
    return Denoiser(lambda x, t: bounded(x, schedule.rho(t.double()).to(x).reshape(-1, 1)), schedule)


def test_trajectory_is_that_of_diffusers_as_recorded(ladder, start) -> None:
    found = sample(ladder, noise=start, sampler=DDPM(grid=LEVELS), generator=seeded())
    expected = torch.tensor(DIFFUSERS, dtype=torch.float64)
    torch.testing.assert_close(found.flatten(), expected, rtol=0, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("variance", "kind"), [("small", "fixed_small"), ("large", "fixed_large")])
@pytest.mark.parametrize("clip", [None, 0.4])
@pytest.mark.parametrize("betas", ["linear", "squaredcos_cap_v2", "sigmoid"])
def test_trajectories_are_those_of_the_installed_diffusers(
    bounded, start, variance: str, kind: str, clip: float | None, betas: str
) -> None:
    made = scheduler(
        variance_type=kind, beta_schedule=betas, clip_sample=clip is not None, clip_sample_range=clip or 1.0
    )
    ours = ladder_of(made, bounded)
    sampler = DDPM(variance, clip, grid=tuple(made.timesteps.tolist()))
    found = sample(ours, noise=start, sampler=sampler, generator=seeded())
    torch.testing.assert_close(found, theirs(made, bounded, ours.schedule, start), rtol=0, atol=1e-9)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("eta", [0.3, 1.0])
def test_stochastic_ddim_is_that_of_the_installed_diffusers(bounded, start, eta: float) -> None:
    """Its last step repeats level 0, without noise; ours ends there."""
    made = scheduler(set_alpha_to_one=False, clip_sample=False)
    made.timesteps = made.timesteps[:-1]
    ours = ladder_of(made, bounded)
    found = sample(ours, noise=start, sampler=DDIM(eta, grid=LEVELS), generator=seeded())
    torch.testing.assert_close(found, theirs(made, bounded, ours.schedule, start, eta=eta), rtol=0, atol=1e-9)  # type: ignore[arg-type]


def test_step_is_the_published_one(wave, start) -> None:
    """`(x - beta/sqrt(1 - abar) eps)/sqrt(1 - beta) + sqrt(posterior variance) z`, with noise drawn in advance."""
    schedule, times = wave.schedule, (1.0, 0.7, 0.4, 0.1)
    noise, source = [], seeded()
    for _ in range(3):
        noise.append(torch.randn(2, 2, generator=source, dtype=torch.float64))
    abar = [schedule.alpha(t) ** 2 for t in times]
    x = start.clone()
    for i in range(3):
        beta = 1 - abar[i] / abar[i + 1]
        mean = (x - beta / math.sqrt(1 - abar[i]) * wave.eps(x, times[i])) / math.sqrt(1 - beta)
        x = mean + math.sqrt((1 - abar[i + 1]) / (1 - abar[i]) * beta) * noise[i]
    found = sample(wave, noise=start, sampler=DDPM(grid=times, clean=False), generator=seeded())
    torch.testing.assert_close(found, x, rtol=1e-10, atol=1e-12)
    found = sample(wave, noise=start, sampler=DDPM(grid=times), generator=seeded())
    torch.testing.assert_close(found, wave.x0(x, 0.1), rtol=1e-10, atol=1e-12)


def test_is_ddim_with_all_noise_fresh(bench) -> None:
    options: dict[str, Any] = {"noise": bench.noise, "steps": 20}
    found = sample(bench.denoiser, sampler=DDPM(clean=False, grid="logsnr"), generator=seeded(), **options)
    expected = sample(bench.denoiser, sampler=DDIM(1.0, grid="logsnr"), generator=seeded(), **options)
    torch.testing.assert_close(found, expected)


def test_parallel_sampling_draws_its_noise_in_advance_and_agrees(bench) -> None:
    grid = time_grid.make(bench.denoiser.schedule, 12, "uniform")
    parallel = ParaDiGMS("ddpm", window=12, tol=1e-9, grid=grid)
    found = sample(bench.denoiser, noise=bench.noise, sampler=parallel, generator=seeded())
    expected = sample(bench.denoiser, noise=bench.noise, sampler=DDPM(clean=False, grid=grid), generator=seeded())
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("schedule", [VPLinear(), VE(sigma_max=10.0), FlowMatching()], ids=["vp", "ve", "flow"])
@pytest.mark.parametrize(("variance", "slack"), [("small", 0.05), ("large", 0.08)])
def test_reaches_the_data(schedule: Any, variance: str, slack: float) -> None:
    data = Gaussian([0.25, 2.0], mean=[1.0, -1.0])
    sampler = DDPM(variance, grid="logsnr", steps=250)
    out = sample(data.denoiser(schedule), (15_000, 2), sampler, generator=seeded(), dtype=torch.float64)
    torch.testing.assert_close(out.mean(0), data.means[0], atol=0.05, rtol=0)
    torch.testing.assert_close(out.var(0), data.variances[0], atol=0.0, rtol=slack)


@pytest.mark.parametrize("clean", [True, False])
def test_evaluations_are_its_steps(bench, clean: bool) -> None:
    costs: dict[str, int] = {}
    sample(bench.denoiser, noise=bench.noise, sampler=DDPM(clean=clean), steps=9, costs=costs)
    assert costs == {"nfe": 9, "rounds": 9}
    sample(bench.denoiser, noise=bench.noise, sampler="ddpm", nfe=9, clean=clean, costs=costs)
    assert costs["nfe"] == 9


def test_thousand_steps_visit_the_levels_of_the_chain() -> None:
    seen: list[float] = []
    chain = DiscreteVP.linear(50)
    sample(Denoiser(lambda x, t: seen.append(float(t[0])) or 0.5 * x, chain), (1, 2), DDPM(), 50, dtype=torch.float64)
    assert seen == list(range(49, -1, -1))


def test_ends_without_noise_and_begins_without_signal() -> None:
    velocity = Denoiser(lambda x, t: x, FlowMatching(T=1.0, t_min=0.0), "velocity")
    out = sample(velocity, noise=torch.ones(3, 2), sampler=DDPM("large", grid=(1.0, 0.5, 0.0)), generator=seeded())
    # x_0 = x - x = 0 at t=1, and all noise is fresh, of the variance lost; then x_0 = x - x/2, without noise.
    torch.testing.assert_close(out, 0.5 * torch.randn(3, 2, generator=seeded()))
    costs: dict[str, int] = {}
    sample(velocity, noise=torch.ones(3, 2), sampler=DDPM(), steps=5, costs=costs)
    assert costs["nfe"] == 5


def test_clipped_estimates_stay_inside(start) -> None:
    wild = Denoiser(lambda x, t: -3.0 * x, VPLinear())
    for guidance in (None, CFG(2.0)):
        made = Denoiser(lambda x, t, cond=None: -3.0 * x, VPLinear()).given(1) if guidance else wild
        out = sample(made, noise=start, sampler=DDPM(clip=1.0), steps=10, guidance=guidance, generator=seeded())
        assert float(out.abs().max()) <= 1.0


def test_each_sample_may_have_a_generator_of_its_own() -> None:
    denoiser = circle().denoiser(VPLinear())
    whole = sample(denoiser, (4, 2), "ddpm", 10, generator=[seeded(i) for i in range(4)])
    part = sample(denoiser, (2, 2), "ddpm", 10, generator=[seeded(i) for i in (2, 3)])
    torch.testing.assert_close(whole[2:], part)


def test_refusals(bench) -> None:
    for match, options in (
        ("variance", {"variance": "learned"}),
        ("clip", {"clip": 0.0}),
        ("clean", {"clean": "yes"}),
        ("steps must be at least 2", {"steps": 1}),
    ):
        with pytest.raises(InputError, match=match):
            sample(bench.denoiser, noise=bench.noise, sampler=DDPM(**options))  # type: ignore[arg-type]
