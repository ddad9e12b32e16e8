"""Claims of CoRe (Eckhoff, Reiher 2024): full batches against Adam and Rprop, mini-batches against the best Adam."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch.optim import Optimizer

import hasten
from hasten.claims.optim.digits import ADAM, best_steps, ratio, steps
from hasten.core.claim import claim
from hasten.core.kinds.minimise import Minimisation
from hasten.core.kinds.train import Training
from hasten.optim.adapter import Point
from hasten.optim.adaptive.core import CoRe

METHOD = "optim.core"
LIMIT = 3000
FULL_BATCH: dict[str, Callable[..., Optimizer]] = {
    "core": partial(CoRe, lr=1e-3, step_sizes=(1e-6, 1.0)),
    "adam": partial(torch.optim.Adam, lr=1e-3),
    "rprop": partial(torch.optim.Rprop, lr=1e-3, step_sizes=(1e-6, 1.0)),
}
PROBLEMS: dict[str, dict[str, Any]] = {"breast-cancer-logreg": {}, "digits-mlp": {"batch": 1797}}
SCALE = (
    "The worse of logistic regression (gap 1e-4 from zero weights, whatever the seed) and the digits MLP (loss 0.1), "
    "all from lr 1e-3, CoRe and Rprop with steps up to 1. The paper's claim is of nine tasks and nine optimizers."
)


@cache
def _full_batch(problem: str, optimizer: str, seed: int) -> float:
    """Steps to the problem's target on full gradients, inf if `LIMIT` are not enough."""
    made = hasten.problem(problem, **PROBLEMS[problem])
    instance = made.build(seed)
    assert isinstance(instance, (Training, Minimisation))
    model = instance.model if isinstance(instance, Training) else Point(instance.x0)
    stepper = FULL_BATCH[optimizer](model.parameters())
    assert made.target is not None
    for t in range(1, LIMIT + 1):
        if isinstance(instance, Training):
            instance.gradient()
        else:
            assert isinstance(model, Point)
            model.x.grad = instance.gradient(model.x.detach())
        stepper.step()
        if instance.metric(model.x if isinstance(model, Point) else model) <= made.target:  # type: ignore[arg-type]
            return t
    return math.inf


def _worst(seed: int, other: str) -> float:
    # A baseline that did not arrive counts with the steps it was given.
    return max(
        ratio(_full_batch(problem, "core", seed), min(_full_batch(problem, other, seed), LIMIT)) for problem in PROBLEMS
    )


@claim(
    method=METHOD,
    paper_id=61,
    baseline=ADAM,
    statement="On full batches CoRe needs at most 0.7 times the steps of Adam from the same step size.",
    quantity="steps to the target, ratio to Adam",
    threshold=0.7,
    note=SCALE,
)
def full_batch_against_adam(seed: int) -> float:
    """Adam at lr 1e-3."""
    return _worst(seed, "adam")


@claim(
    method=METHOD,
    paper_id=61,
    baseline="Rprop",
    statement="On full batches CoRe needs no more steps than Rprop.",
    quantity="steps to the target, ratio to Rprop",
    threshold=1.0,
    note=SCALE + " CoRe is ahead on the network and needs nearly twice the steps of Rprop on the convex function.",
)
def full_batch_against_rprop(seed: int) -> float:
    """Rprop with PyTorch's factors 0.5 and 1.2."""
    return _worst(seed, "rprop")


@claim(
    method=METHOD,
    paper_id=61,
    baseline=ADAM,
    statement="On mini-batches, with steps up to 1e-3, CoRe needs at most 1.3 times the best Adam's steps on digits.",
    quantity="steps to loss 0.1, ratio to Adam at the best of four learning rates",
    threshold=1.3,
    note="Adam does best at 1e-2 here, ten times the largest step that the paper recommends for mini-batches; against "
    "Adam at 1e-3 CoRe is on a par.",
)
def mini_batch(seed: int) -> float:
    """Digits MLP, batches of 64; Adam at 1e-3, 3e-3, 1e-2, 3e-2."""
    return ratio(steps(METHOD, seed, step_sizes=(1e-6, 1e-3)), best_steps(ADAM, seed))


@claim(
    method=METHOD,
    paper_id=61,
    baseline=ADAM,
    statement="There, with steps up to 1e-2, CoRe needs at most 1.3 times the steps of the best Adam.",
    quantity="steps to loss 0.1, ratio to Adam at the best of four learning rates",
    threshold=1.3,
    note="1e-2 is the default; the paper recommends it between mini-batches and full batches.",
)
def mini_batch_with_default_steps(seed: int) -> float:
    """Digits MLP, batches of 64; Adam at 1e-3, 3e-3, 1e-2, 3e-2."""
    return ratio(steps(METHOD, seed), best_steps(ADAM, seed))
