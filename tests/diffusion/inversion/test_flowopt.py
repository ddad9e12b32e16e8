"""FlowOpt and UniInv: the published lines, convergence below the step size's bound, edits between target and source."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import DivergedError, InputError
from hasten.diffusion import DDIM, Denoiser, DPMSolver, FlowMatching, invert, sample
from hasten.diffusion.inversion.flowopt import FlowOpt, UniInv
from hasten.numerics.mixture import circle, classes
from hasten.numerics.reference import rms
from hasten.numerics.time_grid import make

MIXTURE = circle()
FLOW = MIXTURE.denoiser(FlowMatching())
DATA = MIXTURE.sample(64, torch.Generator().manual_seed(0))
TOY = Denoiser(lambda x, t: (2 * x).sin() + t.reshape(-1, 1) * x, FlowMatching(t_min=0.0), "velocity")


def euler(x: Tensor, times: tuple[float, ...]) -> Tensor:
    for s, t in pairwise(times):
        x = x + (t - s) * TOY.velocity(x, s)
    return x


def published_start(x: Tensor, times: tuple[float, ...]) -> Tensor:
    """The start of the published code: predict with the last velocity, evaluate there, step from the old state."""
    velocity = None
    for s, t in pairwise(times[::-1]):
        if velocity is None:
            velocity = TOY.velocity(x, s)
        velocity = TOY.velocity(x + velocity * (t - s), t)
        x = x + velocity * (t - s)
    return x


def test_published_lines_on_a_toy_velocity_field() -> None:
    times = make(TOY.schedule, 6, "uniform")
    y = torch.tensor([[0.4, -1.2], [0.9, 0.1]], dtype=torch.float64)
    start = published_start(y, times)
    torch.testing.assert_close(invert(TOY, y, 6, "uni-inv"), start, rtol=0, atol=1e-12)
    z = start
    for _ in range(5):
        z = z - 0.05 * (euler(z, times) - y)
    mine = invert(TOY, y, 6, "flowopt", eta=0.05, iters=5)
    torch.testing.assert_close(mine, z, rtol=0, atol=1e-12)


def test_converges_from_a_good_start() -> None:
    misses = [rms(x, DATA) for x in FlowOpt(eta=0.05, iters=40, steps=15).edit(FLOW, FLOW, DATA)]
    checkpoints = [misses[i] for i in (0, 5, 10, 20, 40)]
    assert checkpoints == sorted(checkpoints, reverse=True)
    assert misses[40] <= 0.2 * misses[0]
    noise = invert(FLOW, DATA, 15, "flowopt", eta=0.05, iters=40)
    again = rms(sample(FLOW, noise=noise, sampler="ddim", steps=15, grid="uniform"), DATA)
    assert again == pytest.approx(misses[40], rel=1e-6)


def test_large_steps_do_not_converge_and_the_estimate_is_smaller() -> None:
    misses = [rms(x, DATA) for x in FlowOpt(eta=0.5, iters=20, steps=15).edit(FLOW, FLOW, DATA)]
    assert misses[-1] > misses[0]
    eta = FlowOpt(steps=15).estimate_eta(FLOW, DATA, torch.Generator().manual_seed(0))
    assert 0.02 <= eta < 0.5
    halved = FlowOpt(steps=15).estimate_eta(FLOW, DATA, torch.Generator().manual_seed(0), safety=0.25)
    assert halved == pytest.approx(0.5 * eta)


def test_estimate_on_a_linear_flow_is_known() -> None:
    """Where generation multiplies by c, the bound is 2/c."""
    flow = Denoiser(lambda x, t: 0.5 * x, FlowMatching(T=0.999, t_min=0.0), "velocity")
    factor = (1 - 0.5 * 0.999 / 10) ** 10
    eta = FlowOpt(steps=10).estimate_eta(flow, DATA, torch.Generator().manual_seed(0), safety=1.0)
    assert eta == pytest.approx(2 / factor)


def test_no_step_size_is_said() -> None:
    turned = Denoiser(lambda x, t: 3 * x, FlowMatching(T=0.999, t_min=0.0), "velocity")
    with pytest.raises(InputError, match="no step size converges"):
        FlowOpt(steps=1).estimate_eta(turned, DATA)


@pytest.mark.parametrize("skip", [0, 3])
def test_edits_move_from_the_target_to_the_source(skip: int) -> None:
    mixture = classes(components=2, dim=4)
    flow = mixture.denoiser(FlowMatching())
    y = mixture.means[:1] + 0.3 * torch.randn(32, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    source, target = flow.given(torch.zeros(32).long()), flow.given(torch.ones(32).long())
    edits = FlowOpt(eta=0.05, iters=8, steps=15).edit(source, target, y, skip)
    from_source = [rms(x, y) for x in edits]
    assert len(edits) == 9
    assert from_source == sorted(from_source, reverse=True)
    to_target = (edits[0] - mixture.means[1]).norm(dim=1).mean()
    assert float(to_target) < float((y - mixture.means[1]).norm(dim=1).mean())


def test_skipped_steps_keep_more() -> None:
    mixture = classes(components=2, dim=4)
    flow = mixture.denoiser(FlowMatching())
    y = mixture.means[:1].expand(8, 4).contiguous()
    source, target = flow.given(torch.zeros(8).long()), flow.given(torch.ones(8).long())
    moved = [rms(FlowOpt(iters=1, steps=10).edit(source, target, y, skip)[0], y) for skip in (0, 4, 8)]
    assert moved == sorted(moved, reverse=True)


def test_any_deterministic_sampler_generates() -> None:
    solver = DPMSolver(order=2, predict="x0")
    noise = invert(FLOW, DATA, 8, FlowOpt(solver, eta=0.05, iters=30, grid="logsnr"))
    again = sample(FLOW, noise=noise, sampler=DPMSolver(order=2, predict="x0", grid="logsnr"), steps=8)
    start = sample(FLOW, noise=invert(FLOW, DATA, 8, "uni-inv", grid="logsnr"), sampler=solver, steps=8)
    assert rms(again, DATA) < rms(start, DATA)


def test_counts_evaluations() -> None:
    costs: dict[str, int] = {}
    invert(FLOW, DATA, 7, "uni-inv", costs=costs)
    assert costs == {"nfe": 8, "rounds": 8}
    invert(FLOW, DATA, 7, "flowopt", iters=3, costs=costs)
    assert costs["nfe"] == 8 + 3 * 7
    invert(FLOW, DATA, 7, "flowopt", iters=3, init_by="ddim", costs=costs)
    assert costs["nfe"] == 7 + 3 * 7


def test_uni_inv_beats_euler_backwards() -> None:
    x = DATA
    for s, t in pairwise(make(FLOW.schedule, 15, "uniform")[::-1]):
        x = x + (t - s) * FLOW.velocity(x, s)

    def miss(noise: Tensor) -> float:
        return rms(sample(FLOW, noise=noise, sampler="ddim", steps=15, grid="uniform"), DATA)

    assert miss(invert(FLOW, DATA, 15, UniInv())) <= 0.15 * miss(x)


@pytest.mark.parametrize(
    ("match", "hyper"),
    [
        ("eta", {"eta": 0.0}),
        ("eta", {"eta": float("nan")}),
        ("iters", {"iters": 0}),
        ("init_by", {"init_by": "noise"}),
        ("sampler", {"sampler": "ddim"}),
        ("sampler", {"sampler": UniInv()}),
    ],
)
def test_refuses_bad_arguments(match: str, hyper: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=match):
        FlowOpt(**hyper)


def test_refuses_edits_without_steps_and_bad_skips() -> None:
    with pytest.raises(InputError, match="give steps"):
        FlowOpt().edit(FLOW, FLOW, DATA)
    with pytest.raises(InputError, match="skip"):
        FlowOpt(DDIM(), steps=5).edit(FLOW, FLOW, DATA, skip=5)
    with pytest.raises(InputError, match="at least 3 evaluations"):
        invert(FLOW, DATA, method="flowopt", nfe=2)


def test_the_start_names_its_step() -> None:
    broken = Denoiser(lambda x, t: x / 0.0, FlowMatching(), "velocity")
    with pytest.raises(DivergedError, match=r"step 1 of 5.*nan or infinity"):
        FlowOpt(steps=5).edit(broken, broken, DATA)
