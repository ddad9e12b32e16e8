"""What the run loop costs: `hasten.run` against the same training loop written by hand, on `digits-mlp`.

Both train the same network from the same start on the same batches with `torch.optim.AdamW` and evaluate the loss on
all data equally often; they take turns, and the median of the paired ratios counts.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import nn

import hasten
from hasten.core.fingerprint import machine

STEPS, EVERY, LR, ROUNDS, LIMIT = 600, 5, 1e-2, 41, 1.03


IMAGES, LABELS = load_digits(return_X_y=True)
inputs, targets = torch.tensor(IMAGES / 16.0, dtype=torch.float32), torch.tensor(LABELS)


def by_hand(seed: int) -> float:
    """Final loss of the loop that a user would write."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    generator = torch.Generator().manual_seed(seed)
    size, step, loss_now = 64, 0, 0.0
    while step < STEPS:
        order = torch.randperm(len(inputs), generator=generator)
        for start in range(0, len(inputs) - size + 1, size):
            index = order[start : start + size]
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs[index]), targets[index]).backward()
            optimizer.step()
            step += 1
            if step % EVERY == 0:
                model.eval()
                with torch.no_grad():
                    loss_now = nn.functional.cross_entropy(model(inputs), targets).item()
                model.train()
            if step == STEPS:
                break
    return loss_now


def by_hasten(seed: int) -> float:
    """The same through the library."""
    method = hasten.get("optim.adamw").make(lr=LR)
    return hasten.run(method, hasten.problem("digits-mlp"), seed, budget=STEPS, every=EVERY, target=-1.0).final


def main() -> None:
    """Print both times and their ratio; exit with 1 if the ratio is above the limit."""
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {"by hand": [], "hasten.run": []}
    finals = {by_hand(0), by_hasten(0)}
    assert max(finals) - min(finals) < 1e-6, f"the two loops do not compute the same thing: {finals}"
    for seed in range(ROUNDS):
        pair = [("by hand", by_hand), ("hasten.run", by_hasten)]
        for name, loop in pair if seed % 2 else pair[::-1]:
            start = time.perf_counter()
            loop(seed)
            times[name].append(time.perf_counter() - start)
    ratio = statistics.median(b / a for a, b in zip(times["by hand"], times["hasten.run"]))
    for name, values in times.items():
        print(f"{name:12} {1e6 * statistics.median(values) / STEPS:8.1f} us per step (median of {ROUNDS})")
    print(f"ratio        {ratio:8.3f}    (limit {LIMIT})")
    results = Path(__file__).parent / "results"
    results.mkdir(exist_ok=True)
    record = {"ratio": round(ratio, 4), "limit": LIMIT, "steps": STEPS, "machine": machine()}
    (results / "loop.json").write_text(json.dumps(record, indent=1) + "\n")
    sys.exit(ratio > LIMIT)


if __name__ == "__main__":
    main()
