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
from functools import partial
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
    "amsgrad": {},
    "adamomentum": {},
    "adabound": {},
    "diffgrad": {},
    "ano": {},
    "core": {},
    "spam": {},
    "dadapt-adam": {},
    "adafactor": {},
    "came": {},
    "adamp": {},
    "conda": {},
    "online-subspace": {},
    "frugal": {},
    "snsm": {},
}
"""Rules and the options they are measured with."""

STORED = ("adopt", "adabelief", "lion")
"""Rules that are measured with their state in 8 bits as well."""

CHECKED = "adopt"
"""The rule that shows what the default look at the gradients costs."""

MOVED = {
    "adopt": 7,
    "adabelief": 7,
    "ademamix": 9,
    "lion": 5,
    "amsgrad": 9,
    "adamomentum": 7,
    "adabound": 7,
    "diffgrad": 9,
    "ano": 7,
    "core": 9,
    "spam": 7,
    "dadapt-adam": 9,
}
"""Elementwise rules, and how many floats per parameter a step must read and write: AdamW moves 7 (parameter and two
moments, each in and out, and the gradient in)."""

PEERS = {
    "adopt": "ADOPT",
    "adabelief": "AdaBelief",
    "ademamix": "AdEMAMix",
    "lion": "Lion",
    "adabound": "AdaBound",
    "diffgrad": "DiffGrad",
    "ano": "Ano",
    "spam": "SPAM",
    "dadapt-adam": "DAdaptAdam",
    "adafactor": "AdaFactor",
    "came": "CAME",
    "adamp": "AdamP",
    "conda": "Conda",
}
BASELINE = "torch AdamW fused"
PER_BYTE = {"compile": 1.0, "eager": 2.0}
"""Most times fused AdamW's time per byte moved, on the large model."""
SMALL = 1.5
STORED_LIMIT = 2.0
"""Most times the rule's own time with 32-bit state."""
FASTER = {"elementwise": 4.0, "matrix": 5.0}
"""How many times faster than the same rule of pytorch_optimizer."""


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
    held = [state for state in optimizer.state.values() if isinstance(state, dict)]
    tensors = [t for state in held for t in state.values() if torch.is_tensor(t) and t.ndim > 0]
    count = sum(param.numel() for group in optimizer.param_groups for param in group["params"])
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / count


Makers = dict[str, Callable[[Any], Optimizer]]


def heats(names: list[str]) -> list[Makers]:
    """What takes turns together: PyTorch's forms of AdamW, then rule by rule all that there is of it."""
    try:
        import pytorch_optimizer as peers
    except ImportError:
        peers = None
    adamw = torch.optim.AdamW
    baseline: Makers = {BASELINE: lambda params: adamw(params, fused=True)}
    first: Makers = {
        **baseline,
        "torch AdamW foreach": lambda params: adamw(params, foreach=True),
        "torch AdamW loop": lambda params: adamw(params, foreach=False),
    }
    found = [first]
    for name in names:
        heat = dict(baseline)
        for backend in ("compile", "eager") if name in MOVED else ("auto",):
            heat[f"hasten {name} {backend}"] = partial(rule, name, backend=backend)
        if name == CHECKED:
            heat[f"hasten {name} compile, gradients checked"] = partial(rule, name, backend="compile", check=True)
        if name in STORED:
            heat[f"hasten {name} 8-bit"] = partial(rule, name, backend="compile", stored=True)
        if peers is not None and name in PEERS:
            heat[f"pytorch_optimizer {name}"] = getattr(peers, PEERS[name])
        found.append(heat)
    return found


def rule(name: str, params: Any, backend: str, check: bool = False, stored: bool = False) -> Optimizer:
    """One of ours. Like PyTorch's it looks for no infinite gradients, unless it is to be checked what that costs."""
    card = hasten.get(f"optim.{name}")
    options: dict[str, Any] = dict(RULES[name])
    if issubclass(card.load(), hasten.optim.RuleOptimizer):
        options |= {"backend": backend, "on_nonfinite": "raise" if check else "ignore"}
    optimizer = hasten.optim.make(name, params, **options)
    if stored:
        hasten.optim.QuantizedState(optimizer)
    return optimizer


def measure(shapes: list[tuple[int, ...]], rounds: int, repeats: int, names: list[str]) -> list[dict[str, Any]]:
    """Time each heat in turns; `repeats` steps per turn."""
    rows: dict[str, dict[str, Any]] = {}
    for heat in heats(names):
        for label, row in _measure(heat, shapes, rounds, repeats).items():
            rows.setdefault(label, row)
    return list(rows.values())


def _measure(heat: Makers, shapes: list[tuple[int, ...]], rounds: int, repeats: int) -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    steps: dict[str, Callable[[], Any]] = {}
    for label, make in heat.items():
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
    return rows


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Print one table."""
    print(f"\n{title}")
    print(f"{'':32}{'ms/step':>9}{'x fused':>9}{'per byte':>9}{'vs peer':>9}{'setup s':>9}{'bytes/param':>13}")
    for row in rows:
        more = (f"{row[key]:9.2f}" if key in row else " " * 9 for key in ("x per byte", "faster than peer"))
        cells = f"{row['ms / step']:9.2f}{row['x fused AdamW']:9.2f}{''.join(more)}"
        print(f"{row['optimizer']:32}{cells}{row['first 8 steps, s']:9.1f}{row['state bytes / parameter']:13.2f}")


def complete(tables: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Add the time per byte and the ratio to pytorch_optimizer to the rows; returns the targets that are missed."""
    missed = []
    for model, rows in tables.items():
        times = {row["optimizer"]: row["x fused AdamW"] for row in rows}
        for row in rows:
            source, _, rest = row["optimizer"].partition(" ")
            name, _, backend = rest.partition(" ")
            if source == "hasten" and backend == "8-bit":
                row["x 32-bit"] = row["x fused AdamW"] / times[f"hasten {name} compile"]
                if model == "large" and row["x 32-bit"] > STORED_LIMIT:
                    missed.append(
                        f"{model}: {name} in 8 bits {row['x 32-bit']:.2f}x its time, target {STORED_LIMIT:g}x"
                    )
            if source != "hasten" or backend not in ("compile", "eager", "auto"):
                continue
            own = row["x fused AdamW"]
            if name in MOVED:
                row["x per byte"] = own * 7 / MOVED[name]
                limit = PER_BYTE[backend] if model == "large" else SMALL
                value = row["x per byte"] if model == "large" else own
                if value > limit:
                    missed.append(f"{model}: {name} {backend} {value:.2f}x, target {limit:g}x")
            peer = times.get(f"pytorch_optimizer {name}")
            if peer is not None:
                row["faster than peer"] = peer / own
                target = FASTER["elementwise" if name in MOVED else "matrix"]
                if backend != "eager" and row["faster than peer"] < target:
                    missed.append(
                        f"{model}: {name} {row['faster than peer']:.1f}x as fast as its peer, target {target:g}x"
                    )
    return missed


def main() -> None:
    """Measure, print, and write `benchmarks/results/optim.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer rounds")
    parser.add_argument("--only", default=",".join(RULES), help="names of rules, separated by commas")
    options = parser.parse_args()
    names = [name for name in RULES if name in options.only.split(",")]
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    rounds = 5 if options.quick else 11
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads; medians of {rounds} rounds taken in turns")
    tables = {}
    for model, shapes, repeats in (("large", large(), 1), ("small", small(), 5)):
        tables[model] = measure(shapes, rounds, repeats, names)
        missed = complete(tables)
        count = sum(torch.Size(shape).numel() for shape in shapes)
        show(f"{model}: {count / 1e6:.1f} million parameters in {len(shapes)} tensors", tables[model])
    print("\nall speed targets are met" if not missed else "\nmissed: " + "; ".join(missed))
    if names == list(RULES) and not options.quick:
        record = {"machine": machine(), "threads": torch.get_num_threads(), "per byte": PER_BYTE, "tables": tables}
        file = Path(__file__).parent / "results" / "optim.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"written to {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")


if __name__ == "__main__":
    main()
