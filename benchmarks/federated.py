"""Seconds per round of simulated federated training: 100 clients x 5 local SGD steps of an MLP 64-128-10.

python benchmarks/federated.py [rounds]
"""

from __future__ import annotations

import statistics
import sys
import time

import torch

import hasten
from hasten.distributed import EF21, DataParallelSGD, EControl, FedAvg, TernGrad, TopK

GOAL = 0.05


def seconds(method: hasten.Method, problem: hasten.Problem, rounds: int) -> list[float]:
    """Time of each round after three that warm up."""
    instance = problem.build(0)
    state = method.init(instance, torch.Generator().manual_seed(0))
    times = []
    for _ in range(rounds + 3):
        start = time.perf_counter()
        state = method.step(instance, state)
        times.append(time.perf_counter() - start)
    return times[3:]


def main(rounds: int = 30) -> None:
    """Print the table."""
    digits = hasten.problem("digits-federated", clients=100, partition="iid", batch=16)
    quadratic = hasten.problem("hetero-quadratic")
    cases = [
        ("fedavg, 100 clients x 5 steps, MLP 64-128-10", FedAvg(lr=0.1, local_steps=5), digits),
        ("dp-sgd, 100 clients, MLP 64-128-10", DataParallelSGD(lr=0.1), digits),
        ("terngrad, 100 clients, MLP 64-128-10", TernGrad(lr=0.1), digits),
        ("econtrol top-10 %, 100 clients, MLP 64-128-10", EControl(lr=0.1), digits),
        ("ef21 top-5, 20 clients, quadratic d=50", EF21(TopK(5), lr=0.1), quadratic),
    ]
    print(f"{'':48} threads   median ms      min      max   (goal of the first line: {1e3 * GOAL:.0f})")
    before = torch.get_num_threads()
    for label, method, problem in cases:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            times = seconds(method, problem, rounds)
            middle, least, most = (1e3 * f(times) for f in (statistics.median, min, max))
            print(f"{label:48} {threads:7} {middle:11.1f} {least:8.1f} {most:8.1f}")
    torch.set_num_threads(before)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:2]))
