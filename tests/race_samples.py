"""Made-up race results with everything a real one can contain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from hasten.core.result import Result, Scored
from hasten.core.trace import Trace

METHODS = (
    "made.adamw",
    "made.adopt",
    "made.lion",
    "made.prodigy",
    "made.sophia",
    "made.unstable",
    "made.broken",
)
SPEED = {"made.adamw": 1.0, "made.adopt": 1.45, "made.lion": 1.15, "made.prodigy": 0.72, "made.sophia": 0.2}


def decay(rate: float, seed: int, *, target: float | None = 0.1, budget: int = 1000, sent: int = 0) -> Trace:
    """A loss that falls from 2.3 at this rate, with noise; ends at the target or with the budget."""
    rng = np.random.default_rng([seed, round(1000 * rate)])
    rate = rate * math.exp(0.08 * rng.standard_normal()) * (1 + 0.06 * math.sin(seed))
    trace = Trace(target=target, peak_bytes=int(31e6 * (1 + 0.3 * rng.random())))
    for step in range(0, budget + 1, 10):
        value = 2.3 * math.exp(-0.006 * rate * step) * math.exp(0.05 * rng.standard_normal() * (step > 0)) + 0.01
        trace.append(step, step * (0.0031 + 0.0012 / rate), value, {"gradient": step}, step * sent)
        if target is not None and value <= target:
            trace.status = "reached"
            break
    return trace


def diverging(seed: int) -> Trace:
    """A loss that grows until it is nan."""
    trace = Trace(status="diverged", message="the metric became nan at step 120", target=0.1, peak_bytes=30_000_000)
    for step in range(0, 130, 10):
        value = math.nan if step == 120 else 2.3 * math.exp(0.05 * step * (1 + 0.1 * seed))
        trace.append(step, 0.004 * step, value, {"gradient": step}, 0)
    return trace


def failing() -> Trace:
    """A method that raised in its first step."""
    trace = Trace(status="error", message="ValueError: lr must be positive (broken.py:12)", target=0.1)
    trace.append(0, 0.001, 2.3, {}, 0)
    return trace


def single(seeds: int = 5, methods: Sequence[str] = METHODS, **problem: Any) -> Result:
    """One problem: a faster method, a slower one, one that never arrives, one that diverges, one that raises."""
    description = {
        "name": "digits-mlp",
        "kind": "train",
        "measures": "mean loss",
        "target": 0.1,
        "summary": "A two-layer network on 8×8 images of handwritten digits.",
        "cost": "steps",
        "budget": "1000 steps",
        **problem,
    }
    runs = []
    for method in methods:
        for seed in range(seeds):
            if method == "made.unstable" and seed % 2 == 0:
                trace = diverging(seed)
            elif method == "made.broken":
                trace = failing()
            else:
                trace = decay(SPEED.get(method, 0.9), seed, target=description["target"])
            runs.append(Scored(description["name"], method, seed, {"lr": 0.003}, trace))
    return Result(
        runs,
        problems={description["name"]: description},
        baselines={description["name"]: "made.adamw"},
        methods=list(methods),
        tuned={(description["name"], method): {"lr": 0.003, "betas": (0.9, 0.99)} for method in methods},
        trials={(description["name"], method): 8 for method in methods},
        settings={"seeds": seeds, "tuning trials": 8, "first seed": 0, "workers": 2},
        environment={"processor": "a processor", "cores": "2", "accelerator": "", "torch": "2.13"},
    )


def several() -> Result:
    """Three problems of different kinds: training, federated (bytes), sampling (ladders)."""
    base = single()
    runs = list(base.runs)
    problems = dict(base.problems)
    problems["federated-digits"] = {
        "name": "federated-digits",
        "kind": "federate",
        "measures": "test error",
        "target": 0.2,
        "summary": "Digits split over 20 clients by label.",
        "cost": "bytes",
    }
    problems["two-moons"] = {
        "name": "two-moons",
        "kind": "sample",
        "measures": "sliced Wasserstein distance",
        "target": 0.15,
        "summary": "",
        "cost": "calls",
    }
    for place, method in enumerate(("made.adamw", "made.adopt", "made.lion", "made.prodigy")):
        for seed in range(5):
            speed = (1.0, 1.1, 1.9, 1.0)[place]
            trace = decay(speed, 10 + seed, target=0.2, sent=(4_000_000, 1_000_000, 500_000, 4_000_000)[place])
            runs.append(Scored("federated-digits", method, seed, {"lr": 0.1}, trace))
            ladder = Trace(target=0.15)
            for rung in (5, 8, 12, 18, 27, 40, 60, 90):
                value = 2.2 / (rung * (1.0, 1.6, 1.2, 0.5)[place]) * (1 + 0.05 * math.sin(seed + rung))
                ladder.append(rung, 0.01 * rung, value, {"denoise": rung}, 0)
                if value <= 0.15:
                    ladder.status = "reached"
                    break
            runs.append(Scored("two-moons", method, seed, {}, ladder))
    return Result(
        runs,
        problems=problems,
        baselines=dict.fromkeys(problems, "made.adamw"),
        methods=base.methods,
        settings=base.settings,
        environment=base.environment,
    )
