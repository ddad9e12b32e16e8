"""Claims of EControl (paper 4)."""

from __future__ import annotations

import math
import statistics

import torch

from hasten.core.catalogue import problem
from hasten.core.claim import claim
from hasten.core.run import run
from hasten.core.trace import Trace
from hasten.distributed import EF14, EF21, DataParallelSGD, EControl, FederatedMethod, NaiveCompression, TopK
from hasten.problems.hetero_quadratic import HeteroQuadratic

_METHOD = "distributed.econtrol"
_SCALE = "20 unlike quadratics of dimension 50, zeta = 10, top-5, relative distance to the optimum"
_TOP = TopK(5)
_WIRE = TopK(5, wire=torch.float32)


def _instance(seed: int, **params: object) -> HeteroQuadratic:
    return problem("hetero-quadratic", **params).build(seed)  # type: ignore[return-value]


def _trace(method: FederatedMethod, seed: int, rounds: int = 3000, target: float = 0.0, **params: object) -> Trace:
    return run(method, problem("hetero-quadratic", **params), seed, budget=rounds, target=target, every=10)


@claim(
    method=_METHOD,
    paper_id=4,
    baseline="distributed.ef14",
    statement=f"EControl and EF21 at lr = 0.5/L reach 1e-12 within 3000 rounds of exact gradients; {_SCALE}.",
    quantity="larger of the two final errors",
    threshold=1e-12,
    aggregate="max",
)
def exact_under_heterogeneity(seed: int) -> float:
    lr = 0.5 / _instance(seed).L
    return max(_trace(method, seed).final for method in (EControl(_TOP, lr=lr), EF21(_TOP, lr=lr)))


@claim(
    method=_METHOD,
    paper_id=4,
    baseline="distributed.ef14",
    statement=f"Classical error feedback stays above 1e-4 at its best step size in 3000 rounds; {_SCALE}.",
    quantity="smallest error of EF14 over lr L in {0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.1, 0.5}",
    relation=">=",
    threshold=1e-4,
    aggregate="min",
)
def classical_feedback_stalls(seed: int) -> float:
    L = _instance(seed).L
    return min(_trace(EF14(_TOP, lr=c / L), seed).best for c in (0.001, 0.002, 0.003, 0.005, 0.01, 0.03, 0.1, 0.5))


@claim(
    method=_METHOD,
    paper_id=4,
    baseline="distributed.naive-top-k",
    statement=f"Without feedback top-k stays above 0.1 at lr = 0.5/L; {_SCALE}.",
    quantity="smallest error in 3000 rounds",
    relation=">=",
    threshold=0.1,
    aggregate="min",
)
def no_feedback_fails(seed: int) -> float:
    return _trace(NaiveCompression(_TOP, lr=0.5 / _instance(seed).L), seed).best


@claim(
    method=_METHOD,
    paper_id=4,
    baseline="distributed.ef21",
    statement=f"With gradient noise 1 per entry, at lr = 0.03/L, EControl ends at 0.8x EF21's error or less; {_SCALE}.",
    quantity="mean error over rounds 1500 to 3000, ratio to EF21",
    threshold=0.8,
    seeds=(10, 11, 12, 13, 14),
    note="The error fluctuates by a third from round to round at the end, hence the mean over the second half. "
    "L is the smoothness of the mean objective. The measure was chosen on seeds 0 and 1, so the seeds here are others.",
)
def less_noise_than_ef21(seed: int) -> float:
    lr = 0.03 / _instance(seed).L
    ends = []
    for method in (EControl(_TOP, lr=lr), EF21(_TOP, lr=lr)):
        errors = _trace(method, seed, noise=1.0).metric
        ends.append(statistics.fmean(errors[len(errors) // 2 :]))
    return ends[0] / ends[1]


def _uplink(method: FederatedMethod, seed: int, most: float, **params: object) -> float:
    """Bytes up to a relative error of 1e-6, inf above `most`."""
    instance = _instance(seed, **params)
    state = method.init(instance, torch.Generator().manual_seed(seed))
    while instance.up_bytes <= most:
        for _ in range(5):
            state = method.step(instance, state)
        error = instance.metric(state.x)
        if error <= 1e-6:
            return instance.up_bytes
        if not error < 1e3:
            break
    return math.inf


_GRID = (1.5, 1.0, 1.9, 0.7, 0.5)


def _ratio(seed: int, most: float, **params: object) -> float:
    """Bytes of EControl over those of gradient descent, each at its best step size; inf above `most`."""
    L = _instance(seed, **params).L
    plain = min(_uplink(DataParallelSGD(c / L, wire=torch.float32), seed, 1e8, **params) for c in _GRID)
    best = math.inf
    for c in _GRID:
        best = min(best, _uplink(EControl(_WIRE, lr=c / L), seed, min(best, most * plain), **params))
    return best / plain


@claim(
    method=_METHOD,
    paper_id=4,
    baseline="distributed.dp-sgd",
    statement="On the ill-conditioned variant (one Hessian for all, eigenvalues 0.005 to 1) EControl with top-5 of 50 "
    "needs at most 0.9x the uplink bytes of gradient descent to a relative error of 1e-6; float32 values, "
    "4-byte places, lr L in {0.5, 0.7, 1, 1.5, 1.9} for both.",
    quantity="uplink bytes to 1e-6, ratio to gradient descent",
    threshold=0.9,
)
def fewer_bytes_when_ill_conditioned(seed: int) -> float:
    return _ratio(seed, 1.2, shared=True, cond=200.0)


@claim(
    method=_METHOD,
    paper_id=4,
    baseline="distributed.dp-sgd",
    statement="On the well-conditioned variant (random eigenbases), where gradient descent needs about ten rounds, "
    "compression costs more uplink bytes than it saves.",
    quantity="uplink bytes to 1e-6, ratio to gradient descent",
    relation=">=",
    threshold=1.0,
    note="The limit of the method, recorded on purpose.",
)
def more_bytes_when_well_conditioned(seed: int) -> float:
    return _ratio(seed, 20.0)
