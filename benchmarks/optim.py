"""What a step of each optimizer costs: ours eager and compiled, PyTorch's own, and pytorch_optimizer's.

Two models: 25 million parameters in 96 tensors (a transformer of 8 layers, width 512) and 0.8 million in 400 small
tensors. All take turns step by step, so that a disturbance of the machine meets all alike; each time is a median, and
each ratio is the median of paired ratios to `torch.optim.AdamW(fused=True)` of the same round.

    python benchmarks/optim.py [--quick] [--only adopt,lion]
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

import hasten
from hasten.core.fingerprint import machine

RULES: dict[str, dict[str, Any]] = {
    "adopt": {},
    "adabelief": {"rectify": False},
    "ademamix": {},
    "lion": {},
    "adafactor": {},
    "came": {},
}
ELEMENTWISE = ("adopt", "adabelief", "ademamix", "lion")
PEERS = {
    "adopt": "ADOPT",
    "adabelief": "AdaBelief",
    "ademamix": "AdEMAMix",
    "lion": "Lion",
    "adafactor": "AdaFactor",
    "came": "CAME",
}
BASELINE = "torch AdamW fused"
LIMITS = {"large": {"compile": 1.0, "eager": 2.0}, "small": {"compile": 1.5, "eager": 1.5}}


def large() -> list[tuple[int, ...]]:
    """25.2 million parameters in 96 tensors."""
    width = 512
    layer = [(3 * width, width), (3 * width,), (width, width), (width,), (4 * width, width), (4 * width,)]
    layer += [(width, 4 * width), (width,), (width,), (width,), (width,), (width,)]
    return layer * 8


def small() -> list[tuple[int, ...]]:
    """0.8 million parameters in 400 tensors."""
    return [(60, 64), (64,), (64, 60), (60,)] * 100


def build(shapes: list[tuple[int, ...]], make: Callable[[list[nn.Parameter]], Optimizer]) -> Optimizer:
    """An optimizer over parameters of its own, with gradients in place."""
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator) * 0.02) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator)
    return make(params)


def state_bytes(optimizer: Optimizer) -> float:
    """Bytes of state per parameter."""
    tensors = [t for state in optimizer.state.values() for t in state.values() if torch.is_tensor(t) and t.ndim > 0]
    count = sum(param.numel() for group in optimizer.param_groups for param in group["params"])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / count


def contestants(names: list[str]) -> dict[str, Callable[[Any], Optimizer]]:
    """Every optimizer of the table, by its label."""
    adamw = torch.optim.AdamW
    made: dict[str, Callable[[Any], Optimizer]] = {
        BASELINE: lambda params: adamw(params, fused=True),
        "torch AdamW foreach": lambda params: adamw(params, foreach=True),
        "torch AdamW loop": lambda params: adamw(params, foreach=False),
    }
    try:
        import pytorch_optimizer as peers
    except ImportError:
        peers = None
    for name in names:
        for backend in ("compile", "eager"):
            options = {**RULES[name], "backend": backend}
            made[f"hasten {name} {backend}"] = lambda params, n=name, o=options: hasten.optim.make(n, params, **o)
        if peers is not None:
            peer = getattr(peers, PEERS[name])
            made[f"pytorch_optimizer {name}"] = lambda params, cls=peer: cls(params)
    return made


def measure(shapes: list[tuple[int, ...]], rounds: int, repeats: int, names: list[str]) -> list[dict[str, Any]]:
    """Time all contestants in turns; `repeats` steps per turn."""
    rows = {}
    steps: dict[str, Callable[[], Any]] = {}
    for label, make in contestants(names).items():
        optimizer = build(shapes, make)
        start = time.perf_counter()
        for _ in range(8):
            optimizer.step()
        rows[label] = {"optimizer": label, "first 8 steps, s": time.perf_counter() - start}
        rows[label]["state bytes / parameter"] = state_bytes(optimizer)
        steps[label] = optimizer.step
    times: dict[str, list[float]] = {label: [] for label in steps}
    for _ in range(rounds):
        for label, step in steps.items():
            step()
            start = time.perf_counter()
            for _ in range(repeats):
                step()
            times[label].append((time.perf_counter() - start) / repeats)
    for label, row in rows.items():
        ratios = [own / base for own, base in zip(times[label], times[BASELINE])]
        row["ms / step"] = 1e3 * statistics.median(times[label])
        row["best ms"] = 1e3 * min(times[label])
        row["x fused AdamW"] = statistics.median(ratios)
        row["best / best"] = min(times[label]) / min(times[BASELINE])
    return list(rows.values())


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print one table."""
    print(f"\n{title}")
    print(f"{'':32}{'ms/step':>9}{'x fused':>9}{'best x':>9}{'setup s':>9}{'bytes/param':>13}")
    for row in rows:
        cells = f"{row['ms / step']:9.2f}{row['x fused AdamW']:9.2f}{row['best / best']:9.2f}"
        print(f"{row['optimizer']:32}{cells}{row['first 8 steps, s']:9.1f}{row['state bytes / parameter']:13.2f}")


def verdicts(tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Which speed targets of the elementwise rules are missed."""
    missed = []
    for model, rows in tables.items():
        for row in rows:
            source, _, rest = row["optimizer"].partition(" ")
            name, _, backend = rest.partition(" ")
            if source == "hasten" and name in ELEMENTWISE and row["x fused AdamW"] > LIMITS[model][backend]:
                limit = LIMITS[model][backend]
                missed.append(f"{model}: {name} {backend} {row['x fused AdamW']:.2f}x, target {limit}x")
    return missed


def main() -> None:
    """Measure, print, and write `benchmarks/results/optim.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", default=",".join(RULES), help="names of rules, separated by commas")
    options = parser.parse_args()
    names = [name for name in RULES if name in options.only.split(",")]
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    rounds = 9 if options.quick else 31
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {rounds} rounds taken in turns")
    tables = {}
    for model, shapes, repeats in (("large", large(), 1), ("small", small(), 5)):
        tables[model] = measure(shapes, rounds, repeats, names)
        count = sum(torch.Size(shape).numel() for shape in shapes)
        show(f"{model}: {count / 1e6:.1f} million parameters in {len(shapes)} tensors", tables[model])
    missed = verdicts(tables)
    print("\nall speed targets are met" if not missed else "\nmissed: " + "; ".join(missed))
    if names == list(RULES) and not options.quick:
        record = {"machine": machine(), "threads": torch.get_num_threads(), "limits": LIMITS, "tables": tables}
        file = Path(__file__).parent / "results" / "optim.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"written to {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
