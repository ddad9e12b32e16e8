"""Classifier guidance: the exact posterior, stacked batches, cost, refusals."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from hasten.core.errors import InputError
from hasten.diffusion import ClassifierGuidance, FlowMatching, GuidedDenoiser, VPLinear, sample
from hasten.numerics import time_grid
from hasten.numerics.mixture import classes

MIXTURE = classes(3, 4, seed=1)
VARIANCE = 0.3
LABELS = torch.tensor([0, 2, 1, 2])
SCHEDULES = [VPLinear(), FlowMatching()]


def noise() -> Tensor:
    return torch.randn(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def posterior(schedule: Any) -> Any:
    """Logits of the exact class probabilities, `log N(x; alpha m_k, alpha^2 v + sigma^2)` for equal weights."""

    def logits(x: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
        spread = alpha**2 * VARIANCE + sigma**2
        distance = (x[:, None] - alpha[..., None] * MIXTURE.means).square().sum(-1)
        return -0.5 * distance / spread - 2.0 * spread.log()

    return logits


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda schedule: type(schedule).__name__)
def test_exact_classifier_makes_the_conditional_score(schedule: Any) -> None:
    """Bayes: the score of a class is the score of all and the gradient of the class's log probability."""
    denoiser, x = MIXTURE.denoiser(schedule), noise()
    guided = GuidedDenoiser(denoiser, ClassifierGuidance(posterior(schedule), LABELS))
    for t in (0.9, 0.4, 0.1):
        torch.testing.assert_close(guided.eps(x, t), denoiser.given(LABELS).eps(x, t))
        torch.testing.assert_close(guided.x0(x, t), denoiser.given(LABELS).x0(x, t))


def test_is_the_written_out_rule_on_ddim() -> None:
    schedule = VPLinear()
    denoiser, guidance = MIXTURE.denoiser(schedule), ClassifierGuidance(posterior(schedule), LABELS, 2.5)
    x = noise()
    for s, t in pairwise(time_grid.quadratic(schedule, 5)):
        eps = denoiser.eps(x, s) - 2.5 * schedule.sigma(s) * guidance.slope(x, torch.full((4,), s, dtype=x.dtype))
        x = schedule.alpha(t) * (x - schedule.sigma(s) * eps) / schedule.alpha(s) + schedule.sigma(t) * eps
    costs: dict[str, int] = {}
    options: dict[str, Any] = {"sampler": "ddim", "grid": "quadratic", "steps": 5, "costs": costs}
    torch.testing.assert_close(sample(denoiser, noise=noise(), guidance=guidance, **options), x)
    assert costs["nfe"] == 5
    assert not x.requires_grad


def test_serves_parallel_samplers_and_conditional_models() -> None:
    schedule = VPLinear()
    denoiser, guidance = MIXTURE.denoiser(schedule), ClassifierGuidance(posterior(schedule), LABELS)
    plain = sample(denoiser, noise=noise(), sampler="ddim", steps=12, grid="uniform", guidance=guidance)
    options: dict[str, Any] = {"sampler": "paradigms", "steps": 12, "grid": "uniform", "tol": 1e-6}
    torch.testing.assert_close(sample(denoiser, noise=noise(), guidance=guidance, **options), plain, rtol=0, atol=1e-3)
    sure = ClassifierGuidance(lambda x, t: x.new_zeros(len(x), 3) + 0.0 * x[:, :1], LABELS)
    conditional = denoiser.given(LABELS)
    torch.testing.assert_close(GuidedDenoiser(conditional, sure).eps(noise(), 0.5), conditional.eps(noise(), 0.5))


def test_refusals() -> None:
    schedule = VPLinear()
    denoiser, logits = MIXTURE.denoiser(schedule), posterior(schedule)
    for match, make in {
        "labels must be a tensor of integers": lambda: ClassifierGuidance(logits, LABELS.double()),
        "scale": lambda: ClassifierGuidance(logits, LABELS, float("inf")),
        "labels are for 3 samples, but 4": lambda: sample(
            denoiser, noise=noise(), steps=2, guidance=ClassifierGuidance(logits, LABELS[:3])
        ),
        r"logits \(batch, classes\), got \(4,\)": lambda: sample(
            denoiser, noise=noise(), steps=2, guidance=ClassifierGuidance(lambda x, t: x.sum(1), LABELS)
        ),
        "label 2 .* 2 classes": lambda: sample(
            denoiser, noise=noise(), steps=2, guidance=ClassifierGuidance(lambda x, t: x[:, :2], LABELS)
        ),
    }.items():
        with pytest.raises(InputError, match=match):
            make()
