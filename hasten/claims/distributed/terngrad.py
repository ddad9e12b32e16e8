"""Claims of TernGrad (paper 234)."""

from __future__ import annotations

from functools import cache

import torch

from hasten.core.catalogue import problem
from hasten.core.claim import claim
from hasten.core.run import run
from hasten.core.trace import Trace
from hasten.distributed import DataParallelSGD, Ternary, TernGrad
from hasten.numerics import keys

_METHOD = "distributed.terngrad"
_SCALE = "MLP 64-64-10 on digits, 4 workers with batch 16, momentum 0.9, best lr of {0.02, 0.05, 0.1} for each"
_RATES = (0.02, 0.05, 0.1)
_ROUNDS = 200


@cache
def _costs(seed: int) -> tuple[float, float]:
    """Bytes and steps to the loss that the best data-parallel SGD has at 90 % of its run, ratios to that."""
    digits = problem("digits-federated", clients=4, width=64, batch=16, partition="iid")

    def curve(method: type[DataParallelSGD] | type[TernGrad], lr: float, rounds: int) -> Trace:
        return run(method(lr=lr, momentum=0.9), digits, seed, budget=rounds, target=float("-inf"), every=1)

    plain = min((curve(DataParallelSGD, lr, _ROUNDS) for lr in _RATES), key=lambda trace: trace.final)
    goal = plain.metric[round(0.9 * _ROUNDS)]
    ternary = [curve(TernGrad, lr, 2 * _ROUNDS) for lr in _RATES]
    ratios = [min(t.cost_to(goal, by) for t in ternary) / plain.cost_to(goal, by) for by in ("bytes", "steps")]
    return ratios[0], ratios[1]


@claim(
    method=_METHOD,
    paper_id=234,
    baseline="distributed.dp-sgd",
    statement=f"TernGrad needs at most 0.2x the bytes of float32 to the loss of SGD at 90 % of its run; {_SCALE}.",
    quantity="bytes up and down to the target, ratio to float32",
    threshold=0.2,
    seeds=range(5),
)
def fewer_bytes(seed: int) -> float:
    return _costs(seed)[0]


@claim(
    method=_METHOD,
    paper_id=234,
    baseline="distributed.dp-sgd",
    statement=f"TernGrad needs at most 1.5x the steps of SGD to the loss of SGD at 90 % of its run; {_SCALE}.",
    quantity="steps to the target, ratio to float32",
    threshold=1.5,
    seeds=range(5),
)
def few_more_steps(seed: int) -> float:
    return _costs(seed)[1]


@claim(
    method=_METHOD,
    paper_id=234,
    baseline="distributed.dp-sgd",
    statement="The mean of 20,000 ternary messages of one gradient of 100 entries is the clamped gradient within 4 "
    "standard errors in every entry.",
    quantity="largest deviation, in standard errors",
    threshold=4.0,
    seeds=range(5),
)
def unbiased_for_the_clamped_gradient(seed: int) -> float:
    codec = Ternary(clip_sigma=2.5)
    g = keys.normal(keys.key(seed), 100, torch.float64)
    draws = 20000
    read = codec(g.expand(draws, -1), keys.fold(keys.key(1000 + seed), torch.arange(draws)))
    clamped = codec.clip(g)
    spread = (clamped.abs() * (codec.scales(g) - clamped.abs())).clamp_min(0).sqrt() / draws**0.5
    return float(((read.mean(0) - clamped).abs() / (spread + 1e-9)).max())
