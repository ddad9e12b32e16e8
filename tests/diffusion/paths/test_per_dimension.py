"""General solvers on the shortest path: the schedule of a frequency, orders, one frequency alone, bad inputs."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, DEIS, Denoiser, DPMSolver, PerDimension, ShortestPathSchedule, sample
from hasten.diffusion.base import Sampler
from hasten.numerics.frequency_schedule import FrequencySchedule
from hasten.numerics.reference import order_fit

PATH = ShortestPathSchedule(ShortestPathSchedule.power_law(4, c1=4.0, c2=0.9).spectrum)
SPECTRUM = torch.tensor(PATH.spectrum, dtype=torch.float64)
MODEL = Denoiser(PATH.gaussian_eps, PATH.clock)


@pytest.mark.parametrize("power", [0.01, 1.0, 1.0 + 1e-10, 50.0])
def test_schedule_of_a_frequency(power: float) -> None:
    schedule = FrequencySchedule(power)
    t = torch.linspace(0.01, 0.99, 15, dtype=torch.float64)
    share = schedule.alpha(t) ** 2
    torch.testing.assert_close(share * power + schedule.sigma(t) ** 2, power ** (1.0 - t), rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(schedule.t_of_lam(schedule.lam(t)), t, rtol=1e-6, atol=1e-8)
    slope = (schedule.log_alpha(t + 1e-6) - schedule.log_alpha(t - 1e-6)) / 2e-6
    torch.testing.assert_close(schedule.dlog_alpha(t), slope, rtol=1e-3, atol=1e-5)
    if power == 50.0:
        expected = ShortestPathSchedule([[50.0]]).alpha_bar(0.3)
        assert schedule.alpha(0.3) ** 2 == pytest.approx(float(expected))


def noise() -> torch.Tensor:
    return torch.randn(3, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def error(base: Sampler, steps: int) -> float:
    """To the exact flow of Gaussian images, which multiplies frequency k by `S_k^{(T - t_min)/2}`."""
    x = sample(MODEL, noise=noise(), sampler=PerDimension(base, PATH, 0.95, 0.05), steps=steps)
    spectrum = torch.fft.fft2(noise(), norm="ortho") * SPECTRUM ** (0.5 * 0.9)
    return float((x - torch.fft.ifft2(spectrum, norm="ortho").real).square().mean().sqrt())


@pytest.mark.parametrize(
    ("base", "low", "high"),
    [
        (DDIM(), 0.85, 1.15),
        (DPMSolver(2, "multistep"), 1.7, 2.3),
        (DPMSolver(2, "multistep", "x0"), 1.7, 2.3),
        (DEIS(order=1), 1.7, 2.3),
    ],
)
def test_order_of_the_solver_is_kept(base: Sampler, low: float, high: float) -> None:
    counts = (40, 80, 160)
    errors = [error(base, steps) for steps in counts]
    assert low < order_fit(errors, counts) < high
    assert errors[-1] < 0.05


def test_one_power_for_all_is_the_solver_itself() -> None:
    """All frequencies alike: the steps are those of the base solver on that schedule."""
    flat = ShortestPathSchedule(torch.full((4, 4), 3.0))
    network = lambda x, t: torch.tanh(x) * 0.7  # noqa: E731
    for base in (DPMSolver(3, "multistep"), DPMSolver(2), DPMSolver(2, "multistep", "x0")):
        ours = sample(Denoiser(network, flat.clock), noise=noise(), sampler=PerDimension(base, flat), steps=7)
        schedule = FrequencySchedule(3.0)
        plain = sample(Denoiser(network, schedule), noise=noise(), sampler=DPMSolver(**_same(base)), steps=7)
        torch.testing.assert_close(ours, plain, rtol=1e-8, atol=1e-8)


def _same(base: DPMSolver) -> dict:
    return {"order": base.order, "variant": base.variant, "predict": base.predict, "grid": "uniform"}


@pytest.mark.parametrize(
    ("match", "make_bad"),
    [
        ("differ between frequencies", lambda: sample(MODEL, (2, 1, 4, 4), PerDimension(DPMSolver(2), PATH), steps=3)),
        ("base must", lambda: PerDimension(DDIM(eta=0.5), PATH)),
        ("path must", lambda: PerDimension(DDIM(), SPECTRUM)),  # type: ignore[arg-type]
        ("pixels", lambda: sample(MODEL, (2, 1, 8, 8), PerDimension(path=PATH), steps=3)),
        ("T must", lambda: FrequencySchedule(2.0, T=1.0)),
        ("power", lambda: FrequencySchedule(0.0)),
    ],
)  # fmt: skip
def test_refuses_bad_arguments(match: str, make_bad) -> None:
    with pytest.raises(InputError, match=match):
        make_bad()
