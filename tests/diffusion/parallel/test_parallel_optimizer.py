"""Parallel optimisation against the sequential optimizer and a plain rendering of the published loop."""

from __future__ import annotations

import copy
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

import hasten
from hasten.core.errors import DivergedError, InputError
from hasten.core.run import run
from hasten.diffusion import ParallelOptimizer

ADAM = partial(torch.optim.Adam, lr=0.05)
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
MAKERS = [ADAM, SGD, partial(torch.optim.AdamW, lr=0.05, amsgrad=True)]


def start() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(*shape, dtype=torch.float64, generator=generator) for shape in ((4, 3), (2,))]


def gradient(at: list[Tensor], step: int) -> list[Tensor]:
    """Noisy gradient of `sum log cosh z`, the noise from the step alone."""
    generator = torch.Generator().manual_seed(step)
    return [z.tanh() + 0.3 * torch.randn(z.shape, dtype=z.dtype, generator=generator) for z in at]


def sequential(make, steps: int) -> list[Tensor]:
    z = start()
    optimizer = make(z)
    for step in range(steps):
        for tensor, slope in zip(z, gradient(z, step)):
            tensor.grad = slope
        optimizer.step()
    return z


def published(make, steps: int, window: int, threshold: float, ema: float) -> tuple[list[Tensor], int, float]:
    """The loop of `dreamgaussian/main_speedup.py` in alexzhou907/DreamPropeller: one optimizer per buffered copy."""
    buffer = []
    for _ in range(window + 1):
        z = start()
        buffer.append((z, make(z)))
    begin, end, rounds = 0, window, 0
    slots: dict[int, Any] = dict(enumerate(buffer))
    while begin < steps:
        size = end - begin
        slopes = [gradient([v.clone() for v in slots[begin + i][0]], begin + i) for i in range(size)]
        z, optimizer = slots[begin]
        chosen, middle = 0, 0.0
        for i in range(size):
            for tensor, slope in zip(z, slopes[i]):
                tensor.grad = slope
            optimizer.step()
            there, state = slots[begin + i + 1]
            count = sum(v.numel() for v in z)
            error = float(sum((a - b).square().sum() for a, b in zip(there, z))) / count
            if i == size // 2:
                middle = error
            if not chosen and (error > threshold or i == size - 1):
                chosen = begin + i + 1
                state.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            if chosen:
                for a, b in zip(there, z):
                    a.copy_(b)
        threshold = threshold * ema + (1 - ema) * middle
        stop = min(chosen + size, steps)
        for step in range(end + 1, stop + 1):
            fresh = [v.clone() for v in z]
            slots[step] = (fresh, make(fresh))
        begin, end = chosen, stop
        rounds += 1
    return slots[steps][0], rounds, threshold


@pytest.mark.parametrize("make", MAKERS, ids=lambda made: made.func.__name__)
def test_threshold_zero_is_the_sequential_optimizer(make) -> None:
    z = start()
    optimizer = ParallelOptimizer(z, make, gradient, threshold=0.0)
    optimizer.run(40)
    assert (optimizer.index, optimizer.threshold) == (40, 0.0)
    assert optimizer.rounds <= 40
    for ours, exact in zip(z, sequential(make, 40)):
        torch.testing.assert_close(ours, exact, atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("window", "threshold", "ema"), [(7, 1e-4, 0.9), (3, 1e-6, 0.5), (5, 5.0, 0.9), (4, 1e-3, 1.0)]
)
@pytest.mark.parametrize("make", MAKERS, ids=lambda made: made.func.__name__)
def test_is_the_published_loop(make, window: int, threshold: float, ema: float) -> None:
    z = start()
    optimizer = ParallelOptimizer(z, make, gradient, window=window, threshold=threshold, ema_decay=ema)
    optimizer.run(31)
    expected, rounds, left = published(make, 31, window, threshold, ema)
    assert optimizer.rounds == rounds
    assert optimizer.threshold == pytest.approx(left)
    for ours, theirs in zip(z, expected):
        torch.testing.assert_close(ours, theirs, atol=1e-12, rtol=0)


def test_guesses_that_overflow_do_no_harm() -> None:
    """Steep functions: momentum carries the far end of the window off, where the sequential optimizer never goes."""

    def steep(at: list[Tensor], step: int) -> list[Tensor]:
        return [z**3 for z in at]

    z, plain = start(), start()
    optimizer = ParallelOptimizer(z, SGD, steep, window=12, threshold=0.0)
    optimizer.run(40)
    exact = SGD(plain)
    for _ in range(40):
        for tensor, slope in zip(plain, steep(plain, 0)):
            tensor.grad = slope
        exact.step()
    for a, b in zip(z, plain):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_saves_rounds_and_stays_near() -> None:
    z = start()
    optimizer = ParallelOptimizer(z, ADAM, gradient, threshold=1e-3)
    optimizer.run(60)
    assert optimizer.rounds <= 24
    assert optimizer.gradients <= 7 * optimizer.rounds
    for ours, exact in zip(z, sequential(ADAM, 60)):
        torch.testing.assert_close(ours, exact, atol=0.05, rtol=0)


def test_runs_in_parts_end_where_one_run_ends() -> None:
    """Windows end at the number of steps asked for, so that parts are exact too where the threshold is 0."""
    whole, parts = start(), start()
    ParallelOptimizer(whole, ADAM, gradient, threshold=0.0).run(30)
    optimizer = ParallelOptimizer(parts, ADAM, gradient, threshold=0.0)
    for steps in (4, 4, 19, 30):
        optimizer.run(steps)
        assert optimizer.index == steps
    for a, b in zip(whole, parts):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_batched_and_threaded_gradients_are_the_same() -> None:
    def smooth(at: list[Tensor], step: int) -> list[Tensor]:
        return [z.tanh() + 0.01 * step for z in at]

    def batched(at: list[Tensor], steps: Tensor) -> list[Tensor]:
        assert at[0].shape == (len(steps), 4, 3)
        return [z.tanh() + 0.01 * steps.double().reshape(-1, *(1,) * (z.ndim - 1)) for z in at]

    found = []
    with ThreadPoolExecutor(2) as pool:
        ways: list[tuple[Any, dict[str, Any]]] = [
            (smooth, {}),
            (batched, {"batched": True}),
            (smooth, {"map": pool.map}),
        ]
        for function, options in ways:
            z = start()
            ParallelOptimizer(z, SGD, function, threshold=1e-4, adapt="mean", **options).run(20)
            found.append(z)
    for other in found[1:]:
        for a, b in zip(found[0], other):
            torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_learning_rates_follow_the_steps() -> None:
    def decay(step: int, optimizer: torch.optim.Optimizer) -> None:
        optimizer.param_groups[0]["lr"] = 0.05 * 0.9 ** (step + 1)

    z, plain = start(), start()
    ParallelOptimizer(z, ADAM, gradient, threshold=0.0, after=decay).run(25)
    optimizer = ADAM(plain)
    for step in range(25):
        for tensor, slope in zip(plain, gradient(plain, step)):
            tensor.grad = slope
        optimizer.step()
        decay(step, optimizer)
    for a, b in zip(z, plain):
        torch.testing.assert_close(a, b, atol=1e-12, rtol=0)


def test_rows_may_be_added_on_the_way() -> None:
    """Points are added after step 5, for good: what a later round repeats adds them again."""

    def grow(step: int, optimizer: torch.optim.Optimizer) -> None:
        (z,) = optimizer.param_groups[0]["params"]
        if step == 5:
            z.data = torch.cat((z.data, z.data[:2] + 0.1))

    z = [start()[0]]
    make = partial(torch.optim.SGD, lr=0.05)
    optimizer = ParallelOptimizer(z, make, gradient, window=4, threshold=0.0, after=grow)
    optimizer.run(15)
    assert z[0].shape == (6, 3)
    plain = start()[0]
    for step in range(15):
        plain = plain - 0.05 * gradient([plain], step)[0]
        if step == 5:
            plain = torch.cat((plain, plain[:2] + 0.1))
    torch.testing.assert_close(z[0], plain, atol=1e-12, rtol=0)


@pytest.mark.parametrize("name", ["quadratic", "rosenbrock"])
def test_races_in_rounds(name: str) -> None:
    trace = run(hasten.get("dreampropeller").make(lr=0.02), hasten.problem(name), budget=30, target=-1.0)
    assert trace.status == "budget", trace.message
    assert trace.metric[-1] < trace.metric[0]
    assert trace.calls["gradient"][-1] == 7 * 30


def nan_at_three(at: list[Tensor], step: int) -> list[Tensor]:
    return [z * (float("nan") if step == 3 else 1.0) for z in at]


@pytest.mark.parametrize(
    ("match", "make"),
    [
        ("parameters are empty", lambda: ParallelOptimizer([], ADAM, gradient)),
        ("make must be a function", lambda: ParallelOptimizer(start(), 0.1, gradient)),  # type: ignore[arg-type]
        ("window", lambda: ParallelOptimizer(start(), ADAM, gradient, window=0)),
        ("threshold", lambda: ParallelOptimizer(start(), ADAM, gradient, threshold=-1.0)),
        ("ema_decay", lambda: ParallelOptimizer(start(), ADAM, gradient, ema_decay=1.5)),
        ("adapt", lambda: ParallelOptimizer(start(), ADAM, gradient, adapt="max")),
        ("steps", lambda: ParallelOptimizer(start(), ADAM, gradient).run(0)),
        ("one tensor per parameter", lambda: ParallelOptimizer(start(), ADAM, lambda at, step: at[:1]).run(3)),
        ("does not fit", lambda: ParallelOptimizer(start(), ADAM, lambda at, step: [at[0], at[0]]).run(3)),
        ("lr", lambda: hasten.get("dreampropeller").make(lr=0.0)),
    ],
)
def test_refuses_bad_arguments(match: str, make) -> None:
    with pytest.raises(InputError, match=match):
        make()


def test_step_of_a_nan_is_named() -> None:
    with pytest.raises(DivergedError, match=r"round 4: the gradient of step 4"):
        ParallelOptimizer(start(), ADAM, nan_at_three, threshold=0.0).run(10)
