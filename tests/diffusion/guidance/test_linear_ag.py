"""LinearAG: the regression, that estimates stand in for what was left out, the cost, refusals."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.diffusion import CFG, Denoiser, LinearAG, VPLinear, record_trajectories, sample
from hasten.diffusion.guidance.linear_ag import Recording


@pytest.fixture(scope="module")
def recorded(six) -> Recording:
    return record_trajectories(six.denoiser, six.noise, w=4.0, steps=12)


def test_recording_is_plain_guidance(six, recorded) -> None:
    """The recorded predictions at the first step are those at the start noise; all 12 are there."""
    assert len(recorded.conditional) == len(recorded.unconditional) == 12
    t = six.denoiser.schedule.T
    torch.testing.assert_close(recorded.conditional[0], six.denoiser.eps(six.noise, t))
    torch.testing.assert_close(recorded.unconditional[0], six.denoiser.given(None).eps(six.noise, t))


def test_coefficients_are_ordinary_least_squares(recorded) -> None:
    fitted = LinearAG.fit(recorded, rcond=1e-12)
    assert [i for i, row in enumerate(fitted.coefs) if row] == [1, 3, 5]
    conditional = [u.flatten().numpy() for u in recorded.conditional]
    unconditional = [u.flatten().numpy() for u in recorded.unconditional]
    for i in (1, 3, 5):
        columns = np.stack([*conditional[: i + 1], *unconditional[:i]], axis=1)
        estimate = columns @ np.linalg.pinv(columns) @ unconditional[i]
        np.testing.assert_allclose(columns @ np.array(fitted.coefs[i]), estimate, atol=1e-7)
        unconditional[i] = estimate


def test_estimates_stand_in_along_the_chain(six, recorded) -> None:
    """On the trajectories of the fit, the first estimated step is the regression's; the cost is one less there."""
    fitted = LinearAG.fit(recorded, skip=[1])
    seen: list[Tensor] = []
    costs: dict[str, int] = {}
    options: dict[str, Any] = {"noise": six.noise, "sampler": "ddim", "steps": 12}
    sample(six.denoiser, guidance=fitted, costs=costs, callback=lambda state: seen.append(state.x.clone()), **options)
    assert costs["nfe"] == 23
    plain: list[Tensor] = []
    sample(six.denoiser, guidance=CFG(4.0), callback=lambda state: plain.append(state.x.clone()), **options)
    torch.testing.assert_close(seen[0], plain[0])
    estimate = fitted.estimates(recorded)[1]
    schedule = six.denoiser.schedule
    s, t = (float(u) for u in torch.linspace(1.0, schedule.t_min**0.5, 13, dtype=torch.float64)[1:3] ** 2)
    eps = estimate + 4.0 * (six.denoiser.eps(seen[0], s) - estimate)
    x0 = (seen[0] - schedule.sigma(s) * eps) / schedule.alpha(s)
    torch.testing.assert_close(seen[1], schedule.alpha(t) * x0 + schedule.sigma(t) * eps)


def test_a_network_that_is_linear_is_estimated_exactly() -> None:
    """Guided samples then are those of CFG, at fewer evaluations."""

    def network(x: Tensor, t: Tensor, cond: Tensor | None = None) -> Tensor:
        return 0.3 * x if cond is None else 0.5 * x + cond[:, None]

    labels = torch.linspace(-1, 1, 24, dtype=torch.float64)
    noise = torch.randn(24, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(network, VPLinear()).given(labels)
    fitted = LinearAG.fit(record_trajectories(denoiser, noise, w=3.0, steps=10))
    costs: dict[str, int] = {}
    fresh = noise.flip(0)
    found = sample(denoiser, noise=fresh, sampler="ddim", steps=10, guidance=fitted, costs=costs)
    torch.testing.assert_close(found, sample(denoiser, noise=fresh, sampler="ddim", steps=10, guidance=CFG(3.0)))
    assert costs["nfe"] == 18


def test_other_chains_than_those_of_the_fit_are_refused(six, recorded) -> None:
    fitted = LinearAG.fit(recorded)
    for options in ({"steps": 11}, {"steps": 20}, {"steps": 12, "sampler": "dpm-solver-2"}):
        with pytest.raises(InputError, match="fitted to chains of 12"):
            sample(six.denoiser, noise=six.noise, guidance=fitted, **{"sampler": "ddim", **options})


def test_refusals(recorded) -> None:
    with pytest.raises(InputError, match=r"coefs\[1\] must have 3"):
        LinearAG(4.0, ((), (1.0, 2.0)))
    with pytest.raises(InputError, match="skip"):
        LinearAG.fit(recorded, skip=[12])
    few = recorded._replace(unconditional=[u[:1, :2] for u in recorded.unconditional])
    few = few._replace(conditional=[u[:1, :2] for u in recorded.conditional])
    with pytest.raises(InputError, match="cannot fit"):
        LinearAG.fit(few)
    with pytest.raises(InputError, match="rcond"):
        LinearAG.fit(recorded, rcond=1.0)


def test_chains_on_their_own_estimates_stay_near_plain_guidance(six) -> None:
    """Ordinary least squares would be nowhere near."""
    recording = record_trajectories(six.denoiser, six.noise, steps=40)
    noise = six.noise.flip(0)
    options: dict[str, Any] = {"noise": noise, "sampler": "ddim", "steps": 40}
    expected = sample(six.denoiser, guidance=CFG(7.5), **options)
    near = sample(six.denoiser, guidance=LinearAG.fit(recording), **options)
    far = sample(six.denoiser, guidance=LinearAG.fit(recording, rcond=1e-12), **options)
    scale = float(expected.norm())
    assert float((near - expected).norm()) < 0.02 * scale
    assert float((far - expected).norm()) > scale
