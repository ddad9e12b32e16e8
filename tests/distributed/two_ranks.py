"""What each of two gloo processes runs; results are saved for the test that started them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import hasten
from hasten.distributed import (
    EF14,
    EF21,
    QSGD,
    DataParallelSGD,
    DistEngine,
    EControl,
    FedAvg,
    FederatedMethod,
    LowRank,
    NaiveCompression,
    PermK,
    RandK,
    SimEngine,
    TernGrad,
    TopK,
)
from hasten.distributed.ddp_hooks import TernGradState, terngrad_hook
from hasten.numerics import keys

ROUNDS = 5
QUADRATIC = {"spec": "hetero-quadratic", "n": 5, "dim": 12, "noise": 0.5}
DIGITS = {"spec": "digits-federated", "clients": 3, "width": 8}
METHODS: dict[str, FederatedMethod] = {
    "dp-sgd": DataParallelSGD(lr=0.1, momentum=0.9),
    "naive-top-k": NaiveCompression(TopK(4)),
    "ef14": EF14(TopK(4)),
    "ef21": EF21(TopK(4), lr=0.1),
    "econtrol": EControl(TopK(4)),
    "fedavg": FedAvg(local_steps=3),
    "terngrad": TernGrad(lr=0.05, momentum=0.9),
    "terngrad, own scales": TernGrad(lr=0.05, shared_scale=False),
    "ef21, half of the clients": EF21(TopK(4), lr=0.1, participation=0.3),
    "fedavg, some clients": FedAvg(participation=0.4),
    "rand-k": NaiveCompression(RandK(4)),
    "perm-k": NaiveCompression(PermK(5)),
    "qsgd": EF14(QSGD(4), lr=0.05),
    "low-rank": EF21(LowRank(1), lr=0.05),
}
CASES = [(name, QUADRATIC) for name in METHODS] + [(name, DIGITS) for name in ("fedavg", "terngrad", "econtrol")]


def answer(name: str, problem: dict[str, Any], distributed: bool) -> tuple[torch.Tensor, int, int]:
    """x after a few rounds, bytes up, gradients."""
    method = METHODS[name].on(DistEngine() if distributed else SimEngine())
    instance: Any = hasten.problem(**problem).build(3)
    state = method.init(instance, torch.Generator().manual_seed(3))
    for _ in range(ROUNDS):
        state = method.step(instance, state)
    return state.x, instance.up_bytes, instance.calls["gradient"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 1))


def batch(rank: int) -> torch.Tensor:
    return keys.normal(keys.fold(keys.key(11), rank), 24).view(4, 6)


def gradients(network: nn.Module) -> torch.Tensor:
    return torch.cat([p.grad.flatten() for p in network.parameters()])  # type: ignore[union-attr]


def hooked(rank: int) -> dict[str, Any]:
    """Gradients after DDP with the hook: many draws without clipping, one with everything skipped."""
    out: dict[str, Any] = {}
    plain = network()
    plain(batch(rank)).square().mean().backward()
    out["own"] = gradients(plain)
    for label, options in (("ternary", {"clip_sigma": 0.0}), ("skipped", {})):
        net = network()
        state = TernGradState(skip=net.parameters() if label == "skipped" else (), **options)
        model = DistributedDataParallel(net)
        model.register_comm_hook(state, terngrad_hook)
        rows = []
        for _ in range(150 if label == "ternary" else 1):
            model.zero_grad()
            model(batch(rank)).square().mean().backward()
            rows.append(gradients(net))
        out[label] = torch.stack(rows)
        out[f"{label} bytes"] = state.bytes_sent // len(rows)
    return out


def work(rank: int, folder: str) -> None:
    """Entry point of one process."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    results: dict[str, Any] = {f"{name} on {problem['spec']}": answer(name, problem, True) for name, problem in CASES}
    results["hook"] = hooked(rank)
    dist.barrier()
    torch.save(results, Path(folder) / f"rank{rank}.pt")
    dist.destroy_process_group()
