"""Presets are arguments of `sample`, and one of them races."""

from __future__ import annotations

import pytest
import torch

from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.registry import get
from hasten.core.run import run
from hasten.diffusion import CFG, DDIM, DDPM, VPLinear, presets, sample
from hasten.numerics.mixture import classes


def test_ddim_under_guidance() -> None:
    labels = torch.arange(12) % 6
    denoiser = classes().denoiser(VPLinear()).given(labels)
    noise = torch.randn(12, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    costs: dict[str, int] = {}
    found = sample(denoiser, noise=noise, costs=costs, **presets.ddim_cfg(steps=20, w=3.0))
    assert costs["nfe"] == 40
    expected = sample(denoiser, noise=noise, sampler=DDIM(grid="uniform"), steps=20, guidance=CFG(3.0))
    assert torch.equal(found, expected)
    assert presets.ddim_cfg() == {"sampler": DDIM(grid="uniform"), "steps": 50, "guidance": CFG(2.0)}


def test_ancestral() -> None:
    assert presets.ddpm() == {"sampler": DDPM(), "steps": 1000}
    denoiser = classes().denoiser(VPLinear())
    assert sample(denoiser, (3, 8), **presets.ddpm(20, clip=3.0)).shape == (3, 8)


def test_steps_at_the_door() -> None:
    with pytest.raises(InputError, match="steps"):
        presets.ddim_cfg(steps=0)
    with pytest.raises(InputError, match="steps"):
        presets.ddpm(steps=1)


def test_races_where_there_is_a_condition() -> None:
    trace = run(get("diffusion.ddim-cfg").make(w=2.0), problem("gaussian-mixture-classes:batch=16"), budget="48calls")
    assert trace.status in {"budget", "target"}, trace.message
    assert trace.metric[-1] < 0.3 * trace.metric[0]
