"""Restoration-degradation: DDIM for plain noise, the right law for blur and non-linear corruptions, bad inputs."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import VE, Denoiser, FlowMatching, RestorationDegradation, VPLinear, sample
from hasten.numerics.mixture import circle

RATES = torch.tensor([0.0, 2.0], dtype=torch.float64)
SCHEDULE = VE(sigma_min=0.02, sigma_max=1.0)


@pytest.mark.parametrize("schedule", [VPLinear(), SCHEDULE, FlowMatching()], ids=lambda s: type(s).__name__)
def test_is_ddim_for_plain_noise(bench, schedule) -> None:
    denoiser, noise = circle().denoiser(schedule), schedule.noise_scale * bench.noise
    ours = sample(denoiser, noise=noise, sampler="restoration-degradation", steps=12, grid="logsnr")
    ddim = sample(denoiser, noise=noise, sampler="ddim", steps=12, grid="logsnr")
    torch.testing.assert_close(ours, ddim, rtol=0, atol=1e-12)


def gain(t: float) -> torch.Tensor:
    """Posterior mean of `N(0, 1)` per dimension behind `exp(-rate t) x_0 + sigma z`."""
    damping = (-RATES * t).exp()
    return damping / (damping**2 + SCHEDULE.sigma(t) ** 2)


def damped(noise: str, steps: int) -> torch.Tensor:
    """Samples' variances from the exact start law, by simulation of unit vectors."""
    method = RestorationDegradation(
        lambda clean, t: clean * (-RATES * t).exp(), lambda x, t: x * gain(t), noise, grid="uniform", steps=steps
    )
    start = ((-2 * RATES).exp() + 1.0).sqrt().diag()
    out = sample(Denoiser(lambda x, t: x, SCHEDULE), noise=start, sampler=method)
    return out.square().sum(0)


def test_law_of_damped_data_converges_with_aimed_noise_only() -> None:
    exact = 1.0 + SCHEDULE.sigma_min**2
    errors = [float((damped("aimed", n) - exact).abs().max()) for n in (50, 100, 200)]
    assert errors[0] / errors[1] == pytest.approx(2.0, abs=0.3)
    assert errors[1] / errors[2] == pytest.approx(2.0, abs=0.2)
    assert float((damped("none", 200) - exact).abs().max()) > 5 * errors[-1]


def test_steps_follow_the_rule_for_a_nonlinear_corruption() -> None:
    def corrupt(clean: torch.Tensor, t: float) -> torch.Tensor:
        return torch.tanh(clean / (1.0 + t))

    method = RestorationDegradation(corrupt, lambda x, t: 0.5 * x + t, grid=(1.0, 0.4))
    x = torch.tensor([[0.3, -1.2]], dtype=torch.float64)
    clean = 0.5 * x + 1.0
    aimed = (x - torch.tanh(clean / 2.0)) / SCHEDULE.sigma(1.0)
    expected = torch.tanh(clean / 1.4) + SCHEDULE.sigma(0.4) * aimed
    torch.testing.assert_close(sample(Denoiser(lambda x, t: x, SCHEDULE), noise=x, sampler=method), expected)


def test_fresh_noise_comes_from_the_generator(bench) -> None:
    def once(seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        method = RestorationDegradation(noise="fresh", steps=5)
        return sample(bench.denoiser, noise=bench.noise, sampler=method, generator=generator)

    assert torch.equal(once(0), once(0))
    assert not torch.equal(once(0), once(1))


def test_refuses_bad_arguments(bench) -> None:
    with pytest.raises(InputError, match="noise"):
        RestorationDegradation(noise="random")
    with pytest.raises(InputError, match="corrupt must be a function"):
        RestorationDegradation(corrupt=0.5)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="keep the shape"):
        sample(
            bench.denoiser, noise=bench.noise, sampler=RestorationDegradation(lambda clean, t: clean[:, :1]), steps=3
        )
