"""DoG and LDoG: SGD whose step size is the distance moved over the root of the summed squared gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError
from hasten.optim import flat
from hasten.optim.adapter import KINDS, Parts, companion
from hasten.optim.averaging.weights import PolynomialAverager
from hasten.optim.base import Options, RuleOptimizer
from hasten.optim.layout import real
from hasten.optim.moments import axpy_

PAPER = {
    "family": "optim",
    "paper_id": 158,
    "title": "DoG is SGD's Best Friend: A Parameter-Free Dynamic Step Size Schedule",
    "authors": "Ivgi, Hinder, Carmon",
    "year": 2023,
    "arxiv": "2302.12022",
    "kinds": KINDS,
}
CARD = Card(
    name="dog",
    **PAPER,
    summary="SGD with the step size distance moved / root of the summed squared gradients; nothing to tune.",
    cost="A copy of the starting point, and one of the average; two norms per step.",
    when="Fine-tuning, or any problem where SGD does well and there is no time to tune its learning rate.",
    use="optimizer = hasten.optim.DoG(model.parameters(){hyper})\naverage = hasten.optim.PolynomialAverager(model)",
)
LAYERWISE = Card(
    name="ldog",
    **PAPER,
    summary="DoG with a step size of its own for every parameter tensor; nothing to tune.",
    cost="A copy of the starting point, and one of the average; two norms per step.",
    when="As DoG, where layers are of very different scale, as in language models.",
    use="optimizer = hasten.optim.LDoG(model.parameters(){hyper})\naverage = hasten.optim.PolynomialAverager(model)",
)


def _averaged(rule: type[RuleOptimizer], model: nn.Module, hyper: Mapping[str, Any]) -> Parts:
    own = dict(hyper)
    averaging = own.pop("average", True)
    optimizer = rule(model.parameters(), **own)
    if not averaging:
        return Parts(optimizer)
    average = PolynomialAverager(model)
    return Parts(optimizer, (average.step,), lambda: average.best_model)


def _assemble_dog(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    return _averaged(DoG, model, hyper)


def _assemble_ldog(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    return _averaged(LDoG, model, hyper)


class _DistanceOverGradients(RuleOptimizer):
    """Signature and checks that both forms share."""

    def __init__(
        self,
        params: Any,
        reps_rel: float = 1e-6,
        lr: float = 1.0,
        weight_decay: float = 0.0,
        eps: float = 1e-8,
        init_eta: float | None = None,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "reps_rel": reps_rel, "weight_decay": weight_decay, "eps": eps, "init_eta": init_eta}
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("reps_rel", group["reps_rel"])
        check.positive("eps", group["eps"])
        if group["init_eta"] is not None:
            check.positive("init_eta", group["init_eta"])


@companion(CARD, _assemble_dog)
class DoG(_DistanceOverGradients):
    """SGD that finds its own step size: distance over gradients.

        r_t = max(r_{t-1}, |x_t - x_0|),  r_1 = reps_rel (1 + |x_0|);   G_t = G_{t-1} + |g_t|^2,  G_0 = eps
        x <- x - lr * r_t / sqrt(G_t) * g_t

    Norms are over a whole parameter group. The step size does not decay: evaluate an average of the weights, such as
    `PolynomialAverager`. Prefer it where tuned SGD does well and tuning is dear.

    Args:
        params: parameters, named parameters or groups of them; a group must not grow once training has begun.
        reps_rel: first movement relative to `1 + |x_0|`, small; 1e-4 for networks with batch norm.
        lr: multiplies the step size; leave it at 1.
        weight_decay: added to the gradient as `weight_decay * p`.
        eps: added to the summed squared gradients.
        init_eta: the first step size itself, instead of `reps_rel`.
        options: `maximize`, `backend`, `on_nonfinite`, see `Options`.

    Raises:
        InputError: parameters were added to a group after the first step.

    Cost: a copy of the start; two norms and one elementwise pass per step. Source: Ivgi, Hinder, Carmon (2023),
    arXiv 2302.12022.
    """

    kept = ("rbar", "G", "members", "eta")

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        state["start"] = param.detach().clone()

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        return self.decay(group, coupled=True)

    def together(
        self, group: dict[str, Any], params: Sequence[Tensor], grads: Sequence[Tensor], states: Sequence[Any], t: int
    ) -> Mapping[str, float | Tensor]:
        active = [param for param in group["params"] if param.grad is not None and param.numel()]
        # A group of several dtypes comes in parts; the first part settles the step size before anything moves.
        if self.state[active[0]] is states[0]:
            group["eta"] = self._step_size(group, active)
        return {"eta": group["eta"]}

    def _step_size(self, group: dict[str, Any], active: Sequence[Tensor]) -> float:
        everything = [real(param) for param in group["params"]]
        sign = -1.0 if group["maximize"] else 1.0
        decay = group["weight_decay"]
        grads = [real(param.grad) * sign + decay * real(param) if decay else real(param.grad) for param in active]  # type: ignore[arg-type]
        first = "rbar" not in group
        if first:
            group["members"] = len(everything)
            moved = everything
        elif group["members"] != len(everything):
            raise InputError(
                f"a parameter group of DoG grew from {group['members']} to {len(everything)} parameters in training; "
                "give new parameters a group of their own with add_param_group"
            )
        else:
            known = [param for param in group["params"] if "start" in self.state.get(param, ())]
            moved = [real(param) - self.state[param]["start"] for param in known]
        distance, squares = flat.norm(moved), flat.norm(grads)
        group["G"] = group.get("G", group["eps"]) + squares**2
        if first:
            group["rbar"] = 0.0 if group["init_eta"] is not None else group["reps_rel"] * (1 + distance)
            if group["init_eta"] is not None:
                return group["init_eta"]
        group["rbar"] = max(group["rbar"], 0.0 if first else distance)
        return float(group["lr"]) * group["rbar"] / group["G"] ** 0.5

    @staticmethod
    def update(p: Tensor, g: Tensor, *, eta: Any) -> None:
        axpy_(p, -eta, g)


@companion(LAYERWISE, _assemble_ldog)
class LDoG(_DistanceOverGradients):
    """DoG for every parameter tensor by itself: each has its own distance, its own sum, its own step size.

    Args and source as `DoG`, and evaluate an average of the weights as there. Parameters may be added at any time.

    Cost: a copy of the start; two norms per tensor and one elementwise pass per step.
    """

    buffers = ("start", "rbar", "G")
    whole_tensor = True

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        return {"start": tuple(shape), "rbar": (), "G": ()}

    def start(self, group: Mapping[str, Any], param: Tensor, state: dict[str, Any]) -> None:
        state["start"].copy_(param)

    def scalars(self, group: Mapping[str, Any], t: int) -> dict[str, Any]:
        first = {"reps_rel": group["reps_rel"], "eps": group["eps"], "init_eta": group["init_eta"]} if t == 1 else {}
        return {**self.decay(group, coupled=True), "lr": group["lr"], **first}

    @staticmethod
    def update(
        p: Tensor, g: Tensor, start: Tensor, rbar: Tensor, G: Tensor, *,
        lr: Any, reps_rel: Any = None, eps: Any = None, init_eta: Any = None,
    ) -> None:  # fmt: skip
        squares = _norms(g).square()
        if reps_rel is None:
            rbar.copy_(torch.maximum(rbar, _norms(p - start)))
            G.add_(squares)
        else:
            rbar.copy_(reps_rel * (1 + _norms(p)))
            G.copy_(squares + eps)
        eta = lr * rbar / G.sqrt()
        if init_eta is not None:
            rbar.zero_()
            eta = torch.zeros_like(eta) + init_eta
        p.sub_(eta.reshape(-1, *[1] * (p.ndim - 1)) * g)


def _norms(stack: Tensor) -> Tensor:
    """Norm of each member of a stack (B, ...)."""
    return torch.linalg.vector_norm(stack.reshape(stack.shape[0], -1), dim=1)
