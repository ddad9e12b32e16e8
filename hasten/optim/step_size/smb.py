"""SMB and SMBi: SGD steps that are tried, and corrected by a quadratic model where the loss falls too little."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import Unpack

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim import flat
from hasten.optim.adapter import KINDS, optimizer
from hasten.optim.base import Options
from hasten.optim.layout import Batch, real, work_dtype
from hasten.optim.step_size.base import LossOptimizer, finite_loss

CARD = Card(
    name="smb",
    family="optim",
    paper_id=121,
    title="Bolstering Stochastic Gradient Descent with Model Building",
    authors="Birbil, Martin, Onay, Oztoprak",
    year=2021,
    arxiv="2111.07058",
    summary="Tries an SGD step; where the loss falls too little, a quadratic model per layer gives another one.",
    cost="One more forward pass per step, one more backward pass where the trial fails; two tensors per parameter.",
    when="The learning rate for SGD is not known within an order of magnitude.",
    kinds=KINDS,
    needs=("loss",),
    use="optimizer = hasten.optim.SMB(model.parameters(){hyper})\n"
    "inputs, labels = loader[0]\n"
    "optimizer.step(lambda: loss_fn(model(inputs), labels))",
    search_space={"lr": LogReal(1e-2, 1e2)},
)

NEGLIGIBLE = 1e-8
"""Norm of the gradient below which the trial is not judged."""


@optimizer(CARD)
class SMB(LossOptimizer):
    """SGD that tests each step on its batch and corrects it, tensor by tensor, from the gradient at the trial point.

        s = -lr g;   accept s if f(x + s) <= f(x) - c lr |g|^2
        otherwise, with g' the gradient at x + s, y = g' - g, and products over each tensor by itself:
        2 sigma = |s| (|y| + |g| / eta) - <y, s>,   k = 2 sigma + <y, s>,   theta = k^2 - |s|^2 |y|^2
        a = -|s|^2 / (2 sigma),  b = a (|y|^2 <s, g> - k <y, g>) / theta,  e = a (|s|^2 <y, g> - k <s, g>) / theta
        s <- b s + a g + e y

    The model's step is taken without a test, and its length is at most `eta` times that of the trial. With
    `independent_batch` (SMBi) a failed trial is undone, and the next batch's trial is replaced by the model's step with
    the failed gradient in the place of `g` where it is multiplied: then step and gradient are independent.

    Args:
        params: parameters, named parameters or groups of them; groups whose lr is 0 rest. One test serves all groups.
        lr: learning rate of the trial; anything up to far too large.
        eta: in (0, 1); how much shorter a model's step is at least.
        c: share of the expected decrease that a trial must reach, in (0, 1).
        independent_batch: SMBi, see above.
        autoschedule: after every `n_batches_per_epoch` steps, multiply lr by `beta` if more than the share `gamma` of
            them (half of it for SMBi) were the model's, otherwise divide it by `beta`, up to `lr_max`.
        n_batches_per_epoch, gamma, beta, lr_max: see `autoschedule`.
        options: `maximize`, `backend`, `on_nonfinite` (which also looks at the loss), see `Options`.

    `step` takes a closure that returns the loss and does not call `backward`. Use no dropout, or the same one in both
    evaluations.

    Cost: one more forward pass, and where the trial fails one more backward pass. Source: Birbil, Martin, Onay,
    Oztoprak (2021), arXiv 2111.07058.
    """

    kept = ("pending", "trials", "models")

    def __init__(
        self,
        params: Any,
        lr: float = 1.0,
        eta: float = 0.99,
        c: float = 0.1,
        independent_batch: bool = False,
        autoschedule: bool = False,
        n_batches_per_epoch: int = 500,
        gamma: float = 0.05,
        beta: float = 0.9,
        lr_max: float = 20.0,
        **options: Unpack[Options],
    ) -> None:
        hyper = {
            "lr": lr, "eta": eta, "c": c, "independent_batch": independent_batch, "autoschedule": autoschedule,
            "n_batches_per_epoch": n_batches_per_epoch, "gamma": gamma, "beta": beta, "lr_max": lr_max,
        }  # fmt: skip
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        for name in ("eta", "c", "beta"):
            check.real(name, group[name], 0.0, 1.0, open_low=True, open_high=True)
        check.fraction("gamma", group["gamma"])
        check.positive("lr_max", group["lr_max"])
        check.integer("n_batches_per_epoch", group["n_batches_per_epoch"], 1)
        if group["independent_batch"] != self.param_groups[0]["independent_batch"]:
            raise InputError(f"independent_batch must be the same in all groups, got {group['independent_batch']!r}")

    def shapes(self, group: Mapping[str, Any], shape: torch.Size) -> dict[str, tuple[int, ...]]:
        return {"failed": tuple(shape)} if group["independent_batch"] else {}

    def advance(self, work: Sequence[tuple[Batch, list[Tensor]]]) -> None:
        if not finite_loss(self, self._value):
            return
        tensors = [
            _Moving(param, grad, state, float(batch.group["lr"]), batch.group)
            for batch, grads in work
            for param, grad, state in zip(batch.params, grads, batch.states)
            if float(batch.group["lr"]) > 0
        ]
        if not tensors:
            return
        memory = self.param_groups[0]
        sign = -1.0 if memory["maximize"] else 1.0
        squares = flat.dots(*(([t.g], [t.g]) for t in tensors))
        for t in tensors:
            t.shift(-t.lr, t.g)
        try:
            trial = self.at_this_point()
        except BaseException:
            for t in tensors:
                t.undo()
            raise
        decrease = memory["c"] * sum(t.lr * square for t, square in zip(tensors, squares))
        enough = sign * float(trial) <= sign * self._value - decrease
        judged = math.fsum(squares) >= NEGLIGIBLE**2
        pending = memory.get("pending", False)
        if pending or (judged and not enough and not memory["independent_batch"]):
            self._take_models(tensors, squares, trial, sign, pending)
            memory["pending"] = False
            self._count(model=True)
        else:
            if judged and not enough:
                memory["pending"] = True
                for t in tensors:
                    t.undo()
                    t.state["failed"].copy_(t.g)
            self._count(model=False)
        for t in tensors:
            t.state["step"] += 1

    def _take_models(
        self, tensors: Sequence[_Moving], squares: Sequence[float], trial: Tensor, sign: float, pending: bool
    ) -> None:
        found = self.differentiate(trial, [t.param for t in tensors])
        changes, sources = [], []
        for t, grad in zip(tensors, found):
            change = -t.g if grad is None else real(grad).to(t.g.dtype) * sign - t.g
            changes.append(change)
            sources.append(t.state["failed"] if pending else t.g)
        products = flat.dots(
            *(([y], [y]) for y in changes),
            *(([y], [t.g]) for y, t in zip(changes, tensors)),
            *(([y], [source]) for y, source in zip(changes, sources)),
            *(([t.g], [source]) for t, source in zip(tensors, sources)),
        )
        n = len(tensors)
        for i, (t, y, source) in enumerate(zip(tensors, changes, sources)):
            yy, y_g, y_source, g_source = products[i::n]
            along_s, along_source, along_y = model_step(
                t.lr**2 * squares[i], yy, -t.lr * y_g, squares[i], y_source, -t.lr * g_source, t.group["eta"]
            )
            t.undo()
            t.shift(-t.lr * along_s, t.g, along_source, source, along_y, y)

    def _count(self, model: bool) -> None:
        memory = self.param_groups[0]
        memory["trials"] = memory.get("trials", 0) + 1
        memory["models"] = memory.get("models", 0) + model
        if not memory["autoschedule"] or memory["trials"] < memory["n_batches_per_epoch"]:
            return
        often = memory["gamma"] / (2 if memory["independent_batch"] else 1)
        for group in self.param_groups:
            if memory["models"] / memory["trials"] > often:
                group["lr"] = group["lr"] * group["beta"]
            elif group["lr"] / group["beta"] <= group["lr_max"]:
                group["lr"] = group["lr"] / group["beta"]
        memory["trials"] = memory["models"] = 0


class _Moving:
    """A tensor that takes part in the step, its gradient as it is to be descended, and where it was."""

    def __init__(self, param: Tensor, grad: Tensor, state: dict[str, Any], lr: float, group: dict[str, Any]) -> None:
        self.param = param
        self.state = state
        self.lr = lr
        self.group = group
        self.x = real(param.detach())
        self.old = self.x.clone()
        g = real(grad).to(work_dtype(param.dtype))
        self.g = -g if group["maximize"] else g

    def shift(self, *terms: Any) -> None:
        """Move by the sum of scaled directions, given one after the other: scale, direction, scale, direction, ..."""
        moved = self.old.to(self.g.dtype, copy=True)
        for scale, direction in zip(terms[::2], terms[1::2]):
            moved.add_(direction, alpha=scale)
        self.x.copy_(moved)

    def undo(self) -> None:
        """Go back, bit for bit."""
        self.x.copy_(self.old)


def model_step(
    ss: float, yy: float, ys: float, gg: float, yg: float, sg: float, eta: float
) -> tuple[float, float, float]:
    """Coefficients of the trial, of the gradient and of its change in the model's step; zero if they are not finite.

    Args:
        ss, yy, ys, gg: squares and products of the trial `s`, the change `y` of the gradient and the gradient.
        yg, sg: products of `y` and `s` with the gradient that the model is made of.
        eta: see `SMB`.
    """
    reach = math.sqrt(yy) + math.sqrt(gg) / eta
    k = math.sqrt(ss) * reach
    # (|s| (|y| + |g| / eta))^2 - |s|^2 |y|^2 without the cancellation
    theta = ss * math.sqrt(gg) / eta * (2 * math.sqrt(yy) + math.sqrt(gg) / eta)
    if not (theta > 0 and k > ys):
        return 0.0, 0.0, 0.0
    along_g = -ss / (k - ys)
    found = along_g * (yy * sg - k * yg) / theta, along_g, along_g * (ss * yg - k * sg) / theta
    return found if all(map(math.isfinite, found)) else (0.0, 0.0, 0.0)
