"""Adaptive guidance: who leaves guidance and when, what it costs, that samples are treated alike."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.diffusion import CFG, DDIM, AdaptiveGuidance, Denoiser, VPLinear, sample
from hasten.numerics import time_grid

EARLY = AdaptiveGuidance(7.5, gamma=0.999, warmup=0.3)


def by_hand(denoiser: Denoiser, noise: Tensor, grid: Any, warmup: int, gamma: float) -> tuple[Tensor, Tensor]:
    """DDIM one sample at a time, and the steps after which each goes without guidance."""
    schedule, ends, left = denoiser.schedule, [], []
    for x, label in zip(noise, denoiser.cond):
        x, guided, count = x[None], True, 0
        network = denoiser.given(label[None])
        for i, (s, t) in enumerate(pairwise(grid)):
            conditional = eps = network.eps(x, s)
            if guided:
                plain = denoiser.given(None).eps(x, s)
                eps = plain + 7.5 * (conditional - plain)
                cosine = float((conditional * plain).sum() / (conditional.norm() * plain.norm()))
                guided, count = i < warmup or cosine <= gamma, count + 1
            x = schedule.alpha(t) * (x - schedule.sigma(s) * eps) / schedule.alpha(s) + schedule.sigma(t) * eps
        ends.append(x[0])
        left.append(count)
    return torch.stack(ends), torch.tensor(left)


def test_each_sample_leaves_guidance_for_itself(six) -> None:
    grid = time_grid.make(six.denoiser.schedule, 20, "quadratic")
    expected, guided = by_hand(six.denoiser, six.noise, grid, 6, 0.999)
    assert len(guided.unique()) > 1, "all samples leave at once, which tests nothing"
    costs: dict[str, int] = {}
    found = sample(six.denoiser, noise=six.noise, sampler=DDIM(grid=grid), guidance=EARLY, costs=costs)
    torch.testing.assert_close(found, expected)
    assert costs["nfe"] == 20 + -(-int(guided.sum()) // 16)


def test_labels_and_conditions_are_cut_with_their_samples(six) -> None:
    """A number that stands for no label gives what leaving the label out gives."""
    numbered = Denoiser(lambda x, t, cond: six.denoiser.fn(x, t, cond), VPLinear(), null=-1).given(six.denoiser.cond)
    options: dict[str, Any] = {"noise": six.noise, "sampler": "ddim", "steps": 20, "guidance": EARLY}
    first, second = {}, {}
    found = sample(numbered, costs=first, **options)
    torch.testing.assert_close(found, sample(six.denoiser, costs=second, **options))
    assert first["nfe"] == second["nfe"]
    assert first["rounds"] < second["rounds"], "two predictions of all samples fit into one call"


def test_a_null_that_cannot_be_cut_is_evaluated_whole(six) -> None:
    def network(x: Tensor, t: Tensor, cond: Any) -> Tensor:
        assert isinstance(cond, Tensor) or len(cond) == len(x)
        return six.denoiser.fn(x, t, cond if isinstance(cond, Tensor) else None)

    wordy = Denoiser(network, VPLinear(), null=[""] * 16).given(six.denoiser.cond)
    options: dict[str, Any] = {"noise": six.noise, "sampler": "ddim", "steps": 20, "guidance": EARLY}
    torch.testing.assert_close(sample(wordy, **options), sample(six.denoiser, **options))


@pytest.mark.parametrize("sampler", ["ddim", "dpm-solver-2", "dpmpp-2m", "deis"])
def test_never_and_always_are_cfg_and_the_conditional_model(six, sampler: str) -> None:
    options: dict[str, Any] = {"noise": six.noise, "sampler": sampler, "steps": 8}
    costs: dict[str, int] = {}
    never = sample(six.denoiser, guidance=AdaptiveGuidance(4.0, gamma=1.0), costs=costs, **options)
    torch.testing.assert_close(never, sample(six.denoiser, guidance=CFG(4.0), **options))
    full = costs["nfe"]
    at_once = AdaptiveGuidance(1.0, gamma=-0.999, warmup=0.0)
    found = sample(six.denoiser, guidance=at_once, costs=costs, **options)
    torch.testing.assert_close(found, sample(six.denoiser, **options))
    assert costs["nfe"] == full // 2 + 1


def test_switch_does_not_outlive_its_chain(six) -> None:
    options: dict[str, Any] = {"noise": six.noise, "sampler": "ddim", "steps": 20, "guidance": EARLY}
    assert torch.equal(sample(six.denoiser, **options), sample(six.denoiser, **options))


def test_refusals(six) -> None:
    for name, value in {"w": "x", "gamma": 1.5, "warmup": -0.1}.items():
        with pytest.raises(InputError, match=name):
            AdaptiveGuidance(**{name: value})
    with pytest.raises(InputError, match="changes from step to step"):
        sample(six.denoiser, noise=six.noise, sampler="paradigms", guidance=EARLY)
