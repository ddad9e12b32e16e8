"""Our samplers against the schedulers of diffusers: error at equal network evaluations, and time per step.

Error: root mean square distance to the exact solution of the probability-flow ODE from the same noise, on Gaussian
mixtures with exact scores (variance preserving, and EDM) and on the digits transformer (a flow). Every method takes the
best of its own grids and options; each is measured against the exact solution between the very noise levels at which it
begins and ends. Time: 20 steps on a batch of 64x3x32x32 with a network that returns its input.

    python benchmarks/diffusion.py [--quick] [--only error,overhead]
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
import warnings
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusion_error import errors

from hasten.core.fingerprint import machine
from hasten.diffusion import Denoiser, DiscreteVP, sample

CHECKED = 10
LIMIT = 1.1
"""Most times the error of the best scheduler of diffusers, at 10 evaluations."""
OVERHEAD = 0.5
"""Most times the corresponding scheduler's time per step."""
EPS = {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
PAIRS: list[tuple[str, dict[str, Any], str, dict[str, Any]]] = [
    ("ddim", {}, "DDIMScheduler", {"clip_sample": False}),
    ("dpm-solver-2m", {}, "DPMSolverMultistepScheduler", EPS),
    ("dpmpp-2m", {}, "DPMSolverMultistepScheduler", {}),
    ("dpmpp-2m", {"order": 3}, "DPMSolverMultistepScheduler", {"solver_order": 3}),
    ("dpm-solver-2", {}, "DPMSolverSinglestepScheduler", EPS),
    ("dpm-solver-3", {}, "DPMSolverSinglestepScheduler", {**EPS, "solver_order": 3}),
    ("dpmpp-2s", {}, "DPMSolverSinglestepScheduler", {}),
    ("deis", {"order": 1}, "DEISMultistepScheduler", {"solver_order": 2}),
    ("deis", {"order": 2}, "DEISMultistepScheduler", {"solver_order": 3}),
    ("deis-rho-rk", {"order": 1}, "HeunDiscreteScheduler", {}),
]
"""Samplers and the schedulers of the same rules."""


def overhead(quick: bool) -> dict[str, Any]:
    """Print time per step of both sides and return it."""
    steps, rounds = 18, 9 if quick else 41
    noise = torch.randn(64, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    denoiser = Denoiser(lambda x, t: x, DiscreteVP.linear())

    def ours(name: str, hyper: dict[str, Any]) -> None:
        sample(denoiser, noise=noise, sampler=name, nfe=steps, **hyper)

    @torch.no_grad()
    def theirs(scheduler: Any) -> None:
        x = noise
        for t in scheduler.timesteps:
            x = scheduler.step(scheduler.scale_model_input(x, t), t, x).prev_sample

    record: dict[str, Any] = {}
    print(f"\n{'microseconds per evaluation':34}     ours  diffusers   ratio  (limit {OVERHEAD})")
    for name, hyper, scheduler_name, choice in PAIRS:
        scheduler = getattr(diffusers, scheduler_name)(**choice)
        times: tuple[list[float], list[float]] = ([], [])
        for turn in range(rounds):
            scheduler.set_timesteps(steps // 2 + 1 if "Heun" in scheduler_name else steps)
            both = [(partial(ours, name, hyper), steps, 0), (partial(theirs, scheduler), len(scheduler.timesteps), 1)]
            for run, count, side in both if turn % 2 else both[::-1]:
                start = time.perf_counter()
                run()
                times[side].append((time.perf_counter() - start) / count)
        mine, other = (1e6 * statistics.median(side) for side in times)
        ratio = statistics.median(a / b for a, b in zip(*times))
        label = f"{name} {hyper or ''}"
        print(f"{label:34} {mine:8.0f} {other:10.0f} {ratio:7.3f}  {scheduler_name}")
        record[label.strip()] = {"us": round(mine), "diffusers_us": round(other), "ratio": round(ratio, 4)}
    return record


def main() -> None:
    """Print the tables; exit with 1 if a ratio is above its limit."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="smaller batches, mixtures only")
    parser.add_argument("--only", default="error,overhead")
    chosen = parser.parse_args()
    warnings.filterwarnings("ignore")
    diffusers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    record: dict[str, Any] = {}
    if "overhead" in chosen.only:
        record["overhead"] = overhead(chosen.quick)
    if "error" in chosen.only:
        record["error"] = errors(chosen.quick)
    above = [
        f"{name}: time {row['ratio']}" for name, row in record.get("overhead", {}).items() if row["ratio"] > OVERHEAD
    ]
    above += [
        f"{name}: error {rows[str(CHECKED)]['ratio']}"
        for name, rows in record.get("error", {}).items()
        if rows[str(CHECKED)]["ratio"] > LIMIT
    ]
    print("\nabove the limit: " + (", ".join(above) or "nothing"))
    if not chosen.quick and chosen.only == "error,overhead":
        results = Path(__file__).parent / "results"
        results.mkdir(exist_ok=True)
        record = {**record, "limits": {"error": LIMIT, "overhead": OVERHEAD}, "machine": machine()}
        (results / "diffusion.json").write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(bool(above))


if __name__ == "__main__":
    main()
