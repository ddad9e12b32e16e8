"""Adaptive projected guidance: agreement with diffusers, its limits, memory per chain, refusals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.core.kinds.sample import Sampling
from hasten.diffusion import APG, CFG, DDIM, Denoiser, GuidedDenoiser, VPLinear, sample
from hasten.diffusion.guidance.apg import along
from hasten.numerics import time_grid

# diffusers 0.42, normalized_guidance(use_original_formulation=True), guidance scale w - 1, float64, called twice with
# one momentum buffer on the predictions of `predictions`.
SETTINGS: dict[str, dict[str, Any]] = {
    "projected": {"eta": 0.0, "momentum": 0.0},
    "partly": {"eta": 0.3, "momentum": -0.5},
    "bounded": {"eta": 0.0, "momentum": -0.75, "norm_threshold": 1.5},
}
DIFFUSERS = {
    "projected": [
        1.929828701344,
        0.599448491842,
        0.802891032808,
        0.204433411191,
        0.04268137824,
        -3.393659677976,
        -2.163265047772,
        2.95342275874,
    ],
    "partly": [
        3.562449219693,
        -0.945487782653,
        -2.791093191029,
        -1.19925731498,
        -0.089111076907,
        -0.27511571774,
        0.272774392182,
        2.408397346307,
    ],
    "bounded": [
        3.705792874931,
        -1.721467634197,
        -4.103730647647,
        -1.524423507699,
        0.033882559838,
        1.339195807145,
        1.361380233743,
        1.940999861485,
    ],
}


def predictions(call: int) -> tuple[Tensor, Tensor]:
    """Predictions of clean data, two samples of shape (1, 2, 2), with the condition and without."""
    grid = torch.arange(8, dtype=torch.float64).reshape(2, 1, 2, 2)
    return torch.sin(grid + call), torch.cos(1.3 * grid - call)


def guide(guidance: APG) -> list[Tensor]:
    """Guided clean data of two calls of one chain, on a network that returns `predictions`."""
    calls: list[int] = []

    def network(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        calls.append(1)
        return predictions((len(calls) - 1) // 2)[0 if cond is not None else 1]

    denoiser = Denoiser(network, VPLinear(), "x0").given(torch.zeros(2))
    guided = GuidedDenoiser(denoiser, guidance)
    x = torch.zeros(2, 1, 2, 2, dtype=torch.float64)
    return [guided.x0(x, t) for t in (0.8, 0.6)]


@pytest.mark.parametrize("name", SETTINGS)
def test_predictions_are_those_of_diffusers(name: str) -> None:
    found = guide(APG(5.0, **SETTINGS[name]))[1]
    torch.testing.assert_close(found.flatten(), torch.tensor(DIFFUSERS[name], dtype=torch.float64), atol=1e-9, rtol=0)


@pytest.mark.parametrize("name", SETTINGS)
def test_predictions_are_those_of_the_installed_diffusers(name: str) -> None:
    guider = pytest.importorskip("diffusers.guiders.adaptive_projected_guidance")
    hyper = SETTINGS[name]
    buffer = guider.MomentumBuffer(hyper["momentum"])
    for call, found in enumerate(guide(APG(5.0, **hyper))):
        threshold = hyper.get("norm_threshold", 0.0)
        expected = guider.normalized_guidance(*predictions(call), 4.0, buffer, hyper["eta"], threshold, True)
        torch.testing.assert_close(found, expected, atol=1e-9, rtol=0)


def test_samples_by_hand(six) -> None:
    """DDIM with the update written out, one sample at a time."""
    schedule, w = six.denoiser.schedule, 6.0
    grid = time_grid.make(schedule, 6, "quadratic")
    x, past = six.noise, torch.zeros_like(six.noise)
    for s, t in pairwise(grid):
        pulled, plain = six.denoiser.x0(x, s), six.denoiser.given(None).x0(x, s)
        past = pulled - plain - 0.5 * past
        data = []
        for row, change in zip(pulled, past):
            short = change * min(1.0, 0.8 / float(change.norm()))
            data.append(row + (w - 1) * (short - row * float(short @ row) / float(row @ row)))
        x0 = torch.stack(data)
        eps = (x - schedule.alpha(s) * x0) / schedule.sigma(s)
        x = schedule.alpha(t) * x0 + schedule.sigma(t) * eps
    found = sample(six.denoiser, noise=six.noise, sampler=DDIM(grid=grid), guidance=APG(w, norm_threshold=0.8))
    torch.testing.assert_close(found, x)


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver-2", "dpmpp-2m", "deis"])
def test_without_its_parts_it_is_cfg(six, sampler: str) -> None:
    options: dict[str, Any] = {"noise": six.noise, "sampler": sampler, "nfe": 24}
    found = sample(six.denoiser, guidance=APG(5.0, eta=1.0, momentum=0.0), **options)
    torch.testing.assert_close(found, sample(six.denoiser, guidance=CFG(5.0), **options), atol=1e-10, rtol=0)


def test_every_chain_begins_without_momentum(six) -> None:
    denoiser = GuidedDenoiser(six.denoiser, APG())
    instance = Sampling(denoiser, six.noise, metric=lambda x: 0.0)
    method, ends = DDIM(steps=5), []
    for _ in range(2):
        state = method.init(instance, torch.Generator())
        while not method.done(state):
            state = method.step(instance, state)
        ends.append(state.x)
    assert torch.equal(*ends)
    assert torch.equal(ends[0], sample(six.denoiser, noise=six.noise, sampler="ddim", steps=5, guidance=APG()))


def test_prediction_of_zero_has_no_direction() -> None:
    update = torch.ones(2, 3)
    direction = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 0.0]])
    torch.testing.assert_close(along(direction, update), torch.tensor([[0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]))
    still = Denoiser(lambda x, t, cond=None: torch.zeros_like(x), VPLinear(), "x0").given(torch.zeros(2))
    found = sample(still, torch.Size((2, 3)), sampler="ddim", steps=4, guidance=APG(norm_threshold=1.0))
    assert bool(found.isfinite().all())


def test_refusals(six) -> None:
    for sampler in ("paradigms", "dpm-solver-adaptive"):
        with pytest.raises(InputError, match="changes from step to step"):
            sample(six.denoiser, noise=six.noise, sampler=sampler, guidance=APG())
    for name, value in {"w": None, "eta": "x", "momentum": -1.0, "norm_threshold": 0.0}.items():
        with pytest.raises(InputError, match=name):
            APG(**{name: value})
