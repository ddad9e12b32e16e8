"""A denoiser answers every quantity exactly, whichever one its network predicts, and counts its calls."""

from __future__ import annotations

import pickle
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from hasten.core.errors import DivergedError, InputError
from hasten.numerics.denoiser import PREDICTIONS, Denoiser
from hasten.numerics.mixture import circle
from hasten.numerics.noise import EDM, VE, FlowMatching, Schedule, VPCosine, VPLinear

SCHEDULES = [VPLinear(), VPCosine(), VE(), EDM(), FlowMatching()]
MIXTURE = circle(3)


def exact(quantity: str, schedule: Schedule, x: Tensor, t: float) -> Tensor:
    """The quantity by its definition from the mixture's posterior mean."""
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    x0, eps = MIXTURE.x0(x, alpha, sigma), MIXTURE.eps(x, alpha, sigma)
    return {
        "epsilon": eps,
        "x0": x0,
        "v": alpha * eps - sigma * x0,
        "velocity": schedule.dalpha(t) * x0 + schedule.dsigma(t) * eps,
        "score": MIXTURE.score(x, alpha, sigma),
    }[quantity]


def network(prediction: str, schedule: Schedule) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda x, t: torch.cat([exact(prediction, schedule, row[None], float(s)) for row, s in zip(x, t)])


@pytest.mark.parametrize("prediction", PREDICTIONS)
@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: type(s).__name__)
@given(position=st.floats(0.02, 0.98))
@settings(max_examples=10)
def test_every_quantity_from_every_prediction(schedule: Schedule, prediction: str, position: float) -> None:
    t = schedule.t_min + position * (schedule.T - schedule.t_min)
    noise = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = schedule.alpha(t) * MIXTURE.means + schedule.sigma(t) * noise
    denoiser = Denoiser(network(prediction, schedule), schedule, prediction)
    answers = {
        "epsilon": denoiser.eps(x, t),
        "x0": denoiser.x0(x, t),
        "v": denoiser.v(x, t),
        "velocity": denoiser.velocity(x, t),
        "score": denoiser.score(x, t),
    }
    for quantity, answer in answers.items():
        torch.testing.assert_close(answer, exact(quantity, schedule, x, t), rtol=1e-6, atol=1e-7, msg=quantity)
    x0, eps = denoiser.split(x, t)
    torch.testing.assert_close(schedule.alpha(t) * x0 + schedule.sigma(t) * eps, x, rtol=1e-8, atol=1e-8)
    times = torch.full((3,), t, dtype=torch.float64)
    torch.testing.assert_close(denoiser.x0(x, times), denoiser.x0(x, t))


def test_score_is_the_gradient_not_the_noise() -> None:
    schedule, t = VPLinear(), 0.02
    x = torch.zeros(1, 2, dtype=torch.float64) + 0.3
    ratio = MIXTURE.denoiser(schedule).score(x, t) / MIXTURE.denoiser(schedule).eps(x, t)
    torch.testing.assert_close(ratio, torch.full_like(x, -1 / schedule.sigma(t)))


def test_counts_evaluations_per_sample() -> None:
    seen: list[int] = []
    denoiser = MIXTURE.denoiser(VPLinear())
    counted = denoiser.counted(seen.append, 4)
    counted.eps(torch.zeros(4, 2), 0.5)
    counted.split(torch.zeros(4, 2), 0.5)
    counted.x0(torch.zeros(12, 2), torch.full((12,), 0.5))
    denoiser.eps(torch.zeros(4, 2), 0.5)
    assert seen == [1, 1, 3]


def test_conditions_reach_the_network_by_name() -> None:
    def net(x: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        return x * class_labels[:, None]

    denoiser = Denoiser(net, VPLinear(), "epsilon", cond_arg="class_labels").given(torch.tensor([1.0, 3.0]))
    torch.testing.assert_close(denoiser.eps(torch.ones(2, 2), 0.5), torch.tensor([[1.0, 1.0], [3.0, 3.0]]))


def test_network_gets_one_time_per_row_in_the_type_of_x() -> None:
    got: list[Tensor] = []
    denoiser = Denoiser(lambda x, t: got.append(t) or x, VPLinear())
    denoiser.eps(torch.zeros(3, 1, 2, 2), 0.25)
    assert got[0].shape == (3,)
    assert got[0].dtype == torch.float32
    assert bool((got[0] == 0.25).all())


def test_wrong_shape_is_named() -> None:
    denoiser = Denoiser(lambda x, t: x[:, :1], VPLinear())
    with pytest.raises(InputError, match=r"\(4, 2\).*\(4, 1\).*t=0.5 \(alpha="):
        denoiser.eps(torch.zeros(4, 2), 0.5)
    with pytest.raises(InputError, match="tuple"):
        Denoiser(lambda x, t: (x,), VPLinear()).eps(torch.zeros(4, 2), 0.5)  # type: ignore[arg-type, return-value]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_non_finite_output_is_named(bad: float) -> None:
    def net(x: Tensor, t: Tensor) -> Tensor:
        return torch.where(torch.arange(len(x))[:, None] == 1, bad, x)

    with pytest.raises(DivergedError, match=r"1 of 4 samples at t=0.5 \(alpha=.*sigma="):
        Denoiser(net, VPLinear()).eps(torch.zeros(4, 2), 0.5)
    unchecked = Denoiser(net, VPLinear(), check_finite=False).eps(torch.zeros(4, 2), 0.5)
    assert not bool(unchecked.isfinite().all())


def test_sums_beyond_half_precision_are_no_divergence() -> None:
    large = torch.full((1, 100), 6e4, dtype=torch.float16)
    assert bool(Denoiser(lambda x, t: x, VPLinear()).eps(large, 0.5).isfinite().all())


def test_refuses_what_does_not_follow() -> None:
    flow = Denoiser(lambda x, t: x, FlowMatching(T=1.0), "epsilon")
    with pytest.raises(InputError, match="x0 does not follow from a epsilon prediction at t=1"):
        flow.x0(torch.zeros(2, 2), 1.0)
    clean = Denoiser(lambda x, t: x, VPLinear(t_min=0.0), "x0")
    with pytest.raises(InputError, match="epsilon does not follow"):
        clean.eps(torch.zeros(2, 2), 0.0)
    with pytest.raises(InputError, match="sigma = 0"):
        clean.score(torch.zeros(2, 2), 0.0)
    velocity = Denoiser(lambda x, t: x, FlowMatching(T=1.0), "velocity")
    assert bool(velocity.x0(torch.ones(2, 2), 1.0).isfinite().all())


def test_refuses_bad_arguments() -> None:
    with pytest.raises(InputError, match="prediction"):
        Denoiser(lambda x, t: x, VPLinear(), "noise")
    with pytest.raises(InputError, match="schedule"):
        Denoiser(lambda x, t: x, "vp")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="fn"):
        Denoiser(None, VPLinear())  # type: ignore[arg-type]


def test_keeps_the_graph_for_guidance() -> None:
    x = torch.zeros(2, 2, requires_grad=True)
    MIXTURE.denoiser(VPLinear()).x0(x, 0.3).sum().backward()
    assert x.grad is not None
    assert bool(x.grad.isfinite().all())


def _identity(x: Tensor, t: Tensor) -> Tensor:
    return x


def test_travels_between_processes() -> None:
    denoiser = pickle.loads(pickle.dumps(Denoiser(_identity, VPLinear())))
    assert denoiser.eps(torch.ones(1, 2), 0.5).tolist() == [[1.0, 1.0]]


@pytest.mark.parametrize("prediction", PREDICTIONS)
def test_mixtures_of_data_and_noise_cost_one_evaluation(prediction: str) -> None:
    schedule, seen = VPLinear(), []
    x = torch.randn(3, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(network(prediction, schedule), schedule, prediction).counted(seen.append, 3)
    x0, eps = denoiser.split(x, 0.4)
    torch.testing.assert_close(denoiser.mix(x, 0.4, 0.7, -0.2), 0.7 * x0 - 0.2 * eps)
    assert seen == [1, 1]
