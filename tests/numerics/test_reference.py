"""Reference solutions and fitted orders."""

from __future__ import annotations

import pytest
import torch

from hasten.core.errors import InputError
from hasten.numerics.mixture import Gaussian, circle
from hasten.numerics.noise import EDM, VE, FlowMatching, VPLinear
from hasten.numerics.reference import order_fit, rk4_lambda, rms

NOISE = torch.randn(8, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("schedule", [VPLinear(), VE(), FlowMatching(), EDM(T=20.0, t_min=0.01)])
def test_reference_is_of_order_four_towards_the_closed_form(schedule) -> None:
    data = Gaussian([0.3, 2.0], mean=[1.0, -1.0])
    start = schedule.noise_scale * NOISE
    exact = data.flow(start, schedule)
    counts = (40, 80, 160)
    errors = [rms(rk4_lambda(data.denoiser(schedule), start, steps), exact) for steps in counts]
    assert order_fit(errors, counts) == pytest.approx(4.0, abs=0.4)


def test_reference_answers_in_double_and_stops_where_told() -> None:
    data = Gaussian([0.3, 2.0])
    end = rk4_lambda(data.denoiser(VPLinear()), NOISE.float(), steps=100, t_end=0.3)
    assert end.dtype == torch.float64
    torch.testing.assert_close(end, data.flow(NOISE.float().double(), VPLinear(), 0.3), atol=1e-6, rtol=1e-6)
    with pytest.raises(InputError, match="above 0"):
        rk4_lambda(data.denoiser(VPLinear()), NOISE, t_end=0.0)
    with pytest.raises(InputError, match="steps"):
        rk4_lambda(data.denoiser(VPLinear()), NOISE, steps=0)


def test_reference_has_converged_on_the_standard_mixture() -> None:
    denoiser = circle().denoiser(VPLinear())
    assert rms(rk4_lambda(denoiser, NOISE, 300), rk4_lambda(denoiser, NOISE, 600)) < 1e-6


def test_order_fit() -> None:
    steps = (10, 20, 40)
    assert order_fit([3.0 * n**-2.5 for n in steps], steps) == pytest.approx(2.5)
    assert order_fit([1e-1, 1e-2, 1e-15], (10, 100, 1000)) == pytest.approx(1.0)
    with pytest.raises(InputError, match="two errors"):
        order_fit([1e-1, 1e-15], (10, 20))
    with pytest.raises(InputError, match="equally many"):
        order_fit([1e-1], (10, 20))


def test_rms_is_a_distance_between_samples() -> None:
    assert rms(torch.tensor([[3.0, 4.0], [0.0, 0.0]]), torch.zeros(2, 2)) == pytest.approx((25 / 2) ** 0.5)
