"""The front for users, DDIM, and agreement with the schedulers of diffusers."""

from __future__ import annotations

import time
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.errors import InputError
from hasten.core.kinds.sample import Sampling
from hasten.diffusion import DDIM, DEIS, EDM, VE, Denoiser, DPMSolver, VPLinear, sample
from hasten.diffusion.base import planned
from hasten.numerics import time_grid
from hasten.numerics.mixture import Gaussian, circle

# diffusers 0.42, float32, 1000 levels with betas linear from 1e-4 to 0.02, the `ladder` network from `start`. Times are
# the scheduler's own for 10 steps (20 where it says so) and level 0 at the end (final_sigmas_type "sigma_min").
# DEIS with solver_order k uses k - 1 past outputs and polynomials in log rho (lower_order_final=False).
DIFFUSERS = {
    "ddim": [-0.4317959, -0.01673867, 0.03539188, 0.1684373],
    "dpmsolver++ 2M": [-0.488344, -0.0333879, 0.06799302, 0.2381881],
    "dpmsolver++ 2M, 20 steps": [-0.7630632, -0.04423116, 0.09125797, 0.3551531],
    "dpmsolver 2M": [-0.473898, -0.0255833, 0.05277062, 0.2070631],
    "deis 1": [-0.4091766, -0.01142265, 0.02435393, 0.1277762],
    "deis 2": [-0.6156118, -0.03316357, 0.06847895, 0.2713623],
    "deis 3": [-0.7242884, -0.07933724, 0.140769, 0.3045357],
}
LINSPACE = (999, 899, 799, 699, 599, 500, 400, 300, 200, 100, 0)
FINER = (999, 949, 899, 849, 799, 749, 699, 649, 599, 549, 500, 450, 400, 350, 300, 250, 200, 150, 100, 50, 0)
OURS: dict[str, Any] = {
    "ddim": DDIM(grid=tuple(range(900, -1, -100))),
    "dpmsolver++ 2M": DPMSolver(2, "multistep", "x0", grid=LINSPACE),
    "dpmsolver++ 2M, 20 steps": DPMSolver(2, "multistep", "x0", grid=FINER),
    "dpmsolver 2M": DPMSolver(2, "multistep", "eps", grid=LINSPACE),
    "deis 1": DEIS(0, "log_rho_ab", grid=LINSPACE),
    "deis 2": DEIS(1, "log_rho_ab", grid=LINSPACE),
    "deis 3": DEIS(2, "log_rho_ab", grid=LINSPACE),
}


@pytest.mark.parametrize("name", DIFFUSERS)
def test_trajectories_are_those_of_diffusers(ladder, start, name: str) -> None:
    found = sample(ladder, noise=start.float(), sampler=OURS[name]).flatten()
    torch.testing.assert_close(found, torch.tensor(DIFFUSERS[name]), rtol=5e-5, atol=1e-6)


@pytest.mark.parametrize(("predict", "algorithm"), [("eps", "dpmsolver"), ("x0", "dpmsolver++")])
def test_singlestep_is_that_of_diffusers(ladder, start, predict: str, algorithm: str) -> None:
    """Its steps of order 2 begin at every second noise level; on a grid uniform in lam its midpoint is ours."""
    golden = {
        "dpmsolver": [-0.8501709, -0.5943891, 0.729192, 0.8063325],
        "dpmsolver++": [-0.4825008, -0.02730027, 0.05485053, 0.1936736],
    }
    grid = time_grid.logsnr(ladder.schedule, 10)[::2]
    found = sample(ladder, noise=start.float(), sampler=DPMSolver(2, predict=predict, grid=grid)).flatten()
    torch.testing.assert_close(found, torch.tensor(golden[algorithm]), rtol=5e-5, atol=1e-6)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", DIFFUSERS)
def test_trajectories_are_those_of_the_installed_diffusers(ladder, bounded, start, name: str) -> None:
    import diffusers

    family, _, detail = name.partition(" ")
    if family == "ddim":
        scheduler = diffusers.DDIMScheduler(set_alpha_to_one=False, clip_sample=False)
    elif family == "deis":
        scheduler = diffusers.DEISMultistepScheduler(solver_order=int(detail), lower_order_final=False)
    else:
        scheduler = diffusers.DPMSolverMultistepScheduler(algorithm_type=family, final_sigmas_type="sigma_min")
    scheduler.set_timesteps(20 if "20 steps" in name else 10)
    x = start.float()
    for t in scheduler.timesteps:
        rho = torch.tensor(ladder.schedule.rho(float(t)), dtype=torch.float32)
        x = scheduler.step(bounded(x, rho), t, x).prev_sample
    torch.testing.assert_close(sample(ladder, noise=start.float(), sampler=OURS[name]), x, rtol=5e-5, atol=1e-6)


def test_example_of_the_docs() -> None:
    denoiser = Denoiser(lambda x, t: 0.5 * x, VPLinear(), "epsilon")
    images = hasten.diffusion.sample(denoiser, (4, 3, 8, 8), sampler="dpm-solver-3", steps=10)
    assert images.shape == (4, 3, 8, 8)
    assert images.dtype == torch.float32


@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "velocity", "score"])
def test_any_prediction_gives_the_same_samples(bench, prediction: str) -> None:
    inner = bench.denoiser
    ask = {"epsilon": inner.eps, "x0": inner.x0, "v": inner.v, "velocity": inner.velocity, "score": inner.score}
    other = Denoiser(ask[prediction], inner.schedule, prediction)
    for sampler in ("ddim", "dpm-solver-3", "dpmpp-2m", "deis"):
        expected = sample(inner, noise=bench.noise, sampler=sampler, nfe=18)
        torch.testing.assert_close(sample(other, noise=bench.noise, sampler=sampler, nfe=18), expected, msg=sampler)


def test_ancestral_sampling_reaches_the_data() -> None:
    """With eta=1 the noise is redrawn all the way; on Gaussian data the final variance is known."""
    data = Gaussian([0.25, 2.0], mean=[1.0, -1.0])
    generator = torch.Generator().manual_seed(0)
    options: dict[str, Any] = {"nfe": 300, "generator": generator, "eta": 1.0, "dtype": torch.float64}
    out = sample(data.denoiser(VPLinear()), (20_000, 2), sampler="ddim", **options)
    torch.testing.assert_close(out.mean(0), data.means[0], atol=0.05, rtol=0)
    torch.testing.assert_close(out.var(0), data.variances[0], atol=0.0, rtol=0.06)
    deterministic = sample(data.denoiser(VPLinear()), noise=torch.ones(1, 2), sampler="ddim", nfe=5)
    again = sample(data.denoiser(VPLinear()), noise=torch.ones(1, 2), sampler="ddim", nfe=5, generator=generator)
    assert torch.equal(deterministic, again)


def test_ddim_ends_at_sigma_zero_and_begins_at_alpha_zero() -> None:
    velocity = Denoiser(lambda x, t: x, hasten.diffusion.FlowMatching(T=1.0), "velocity")
    out = sample(velocity, noise=torch.ones(1, 2), sampler="ddim", grid=(1.0, 0.5, 0.0))
    torch.testing.assert_close(out, torch.full((1, 2), 0.25))


def test_euler_steps_of_a_flow_are_ddim() -> None:
    denoiser = Denoiser(lambda x, t: torch.sin(x) * t[:, None], hasten.diffusion.FlowMatching(), "velocity")
    x = start = torch.randn(4, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    grid = time_grid.uniform(denoiser.schedule, 7)
    for s, t in pairwise(grid):
        x = x + (t - s) * torch.sin(x) * s
    torch.testing.assert_close(sample(denoiser, noise=start, sampler=DDIM(grid=grid)), x)


def test_noise_is_scaled_to_the_schedule() -> None:
    seen: list[Tensor] = []
    sample(
        Denoiser(lambda x, t: seen.append(x) or x, EDM()),
        (4000, 2),
        sampler="ddim",
        steps=1,
        grid="karras",
        generator=torch.Generator().manual_seed(0),
        dtype=torch.float64,
    )
    assert seen[0].dtype == torch.float64
    assert float(seen[0].std()) == pytest.approx(80.0, rel=0.05)


def test_callback_sees_every_step(bench) -> None:
    seen: list[tuple[int, float]] = []
    sample(
        bench.denoiser,
        noise=bench.noise,
        sampler="ddim",
        steps=5,
        callback=lambda state: seen.append((state.index, float(state.x.std()))),
    )
    assert [index for index, _ in seen] == [1, 2, 3, 4, 5]
    assert len({spread for _, spread in seen}) == 5


def test_default_is_twenty_evaluations(bench) -> None:
    costs: dict[str, int] = {}
    sample(bench.denoiser, (4, 2), costs=costs)
    assert costs == {"nfe": 18, "rounds": 18}


def test_a_sampler_object_instead_of_a_name(bench) -> None:
    named = sample(bench.denoiser, noise=bench.noise, sampler="deis", steps=9, order=2)
    assert torch.equal(named, sample(bench.denoiser, noise=bench.noise, sampler=DEIS(2), steps=9))
    assert torch.equal(named, sample(bench.denoiser, noise=bench.noise, sampler=DEIS(2, steps=9)))
    assert torch.equal(named, sample(bench.denoiser, noise=bench.noise, sampler="diffusion.deis", nfe=9, order=2))


def test_conditions_reach_the_network(bench) -> None:
    denoiser = circle().denoiser(VPLinear())
    out = sample(denoiser.given(torch.full((64,), 3)), noise=bench.noise, sampler="dpm-solver-2", nfe=40)
    centre = circle().means[3]
    assert float((out - centre).norm(dim=1).mean()) < 0.8
    assert float((sample(denoiser, noise=bench.noise, nfe=40) - centre).norm(dim=1).mean()) > 1.5


def test_coefficients_are_computed_once_per_grid() -> None:
    schedule = VPLinear()
    first = planned(DEIS(3), schedule, 40)
    assert planned(DEIS(3), VPLinear(), 40) is first
    assert planned(DEIS(2), schedule, 40) is not first
    begin = time.perf_counter()
    for _ in range(100):
        planned(DEIS(3), VPLinear(), 40)
    assert time.perf_counter() - begin < 0.1


def test_half_precision_runs() -> None:
    denoiser = Denoiser(lambda x, t: 0.5 * x, VPLinear())
    for dtype in (torch.float16, torch.bfloat16):
        out = sample(denoiser, (2, 4), nfe=12, dtype=dtype)
        assert out.dtype == dtype
        assert bool(out.isfinite().all())


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("either shape", {}),
        ("either shape", {"shape": (2, 2), "noise": torch.zeros(2, 2)}),
        ("steps or nfe", {"shape": (2, 2), "steps": 5, "nfe": 5}),
        ("steps", {"shape": (2, 2), "steps": 0}),
        ("nfe", {"shape": (2, 2), "nfe": 0}),
        ("noise must be", {"noise": torch.zeros(2)}),
        ("unknown method.*ddim", {"shape": (2, 2), "sampler": "dim"}),
        ("set these on the sampler", {"shape": (2, 2), "sampler": DDIM(), "eta": 1.0}),
        ("eta", {"shape": (2, 2), "sampler": "ddim", "eta": 1.5}),
        ("grid", {"shape": (2, 2), "grid": "cosine"}),
    ],
)
def test_refuses_bad_arguments(match: str, options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=match):
        sample(circle().denoiser(VE()), **options)


def test_steps_or_evaluations_must_be_known(bench) -> None:
    instance = Sampling(bench.denoiser, bench.noise, metric=lambda x: 0.0)
    with pytest.raises(InputError, match="give steps, or nfe"):
        DDIM().init(instance, torch.Generator())
