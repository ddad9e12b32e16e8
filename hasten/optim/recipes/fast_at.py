"""Fast adversarial training that does not collapse (ConvergeSmooth), and adversarial fine-tuning."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.core.errors import InputError
from hasten.optim.adapter import Parts, companion
from hasten.optim.recipes.fgsm_training import FastAdversarialTraining
from hasten.optim.schedules.slow_start import SlowStartFastDecay
from hasten.optim.wrapper import StepHook

CARD = Card(
    name="converge-smooth",
    family="optim",
    paper_id=67,
    title="Fast Adversarial Training with Smooth Convergence",
    authors="Zhao et al.",
    year=2023,
    summary="Pulls the loss of single-step adversarial training back when it jumps, which is how it collapses.",
    cost="One more forward pass on the clean batch.",
    when="Adversarial training must be cheap (one attack step) at an eps at which it collapses.",
    kinds=("train",),
    needs=("loss",),
    use="smooth = hasten.optim.ConvergeSmooth()\n"
    "base = torch.optim.SGD(model.parameters(), momentum=0.9{hyper})\n"
    "optimizer = hasten.optim.FastAdversarialTraining(base, model, eps=0.1, box=None, smooth=smooth)\n"
    "for inputs, labels in loader:\n    optimizer.step(lambda: loss_fn(model(inputs), labels))\n"
    "smooth.end_epoch()",
    search_space={"lr": LogReal(1e-3, 1.0)},
)


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own = dict(hyper)
    base = torch.optim.SGD(model.parameters(), lr=own.pop("lr", 0.1), momentum=0.9)
    attack = {name: own.pop(name) for name in ("eps", "alpha", "box") if name in own}
    smooth = ConvergeSmooth(**own)
    optimizer = FastAdversarialTraining(base, model, **{"eps": 0.1, "box": None, **attack}, smooth=smooth)
    steps = iter(range(1, horizon + 1))

    def count() -> None:
        if next(steps, 1) % max(1, horizon // 20) == 0:
            smooth.end_epoch()

    return Parts(optimizer, (count,))


@companion(CARD, _assemble)
class ConvergeSmooth:
    """Keeps the clean loss of adversarial training near that of the epoch before.

        gap = min(max(gamma_max / ratio, D), gamma_max),   D = Lbar_{e-1} - Lbar_{e-2}
        loss + weight * clean   where clean > Lbar_{e-1} + gap
        loss - weight * clean   where clean < Lbar_{e-1} - gap
        loss                    else, in the first epoch, and near milestones of the learning rate

    `Lbar_e` is the mean clean loss of epoch e. Single-step adversarial training collapses by sudden jumps of this
    loss; it makes the curve smooth. Instead of the clean loss, that of the randomly perturbed start of the attack
    serves as well and costs nothing.

        loss = smooth.loss(loss_fn(model(attacked), labels), loss_fn(model(inputs), labels))
        loss.backward()
        ...
        smooth.end_epoch()

    Args:
        gamma_max: largest allowed distance, > 0.
        ratio: `gamma_max / ratio` is the smallest allowed distance, >= 1.
        weight: of the clean loss where it is out of range, >= 0.
        stride: epochs around a milestone in which nothing is done, >= 0.
        milestones: epochs (from 0) at which the learning rate drops.

    Attributes:
        epoch: number of epochs that have ended.
        means: their mean clean losses.

    Cost: one forward pass on the clean batch. Source: Zhao et al. (2023), Fast Adversarial Training with Smooth
    Convergence, ICCV 2023.
    """

    def __init__(
        self,
        gamma_max: float = 0.03,
        ratio: float = 1.0,
        weight: float = 1.0,
        stride: int = 1,
        milestones: Sequence[int] = (),
    ) -> None:
        self.gamma_max = check.positive("gamma_max", gamma_max)
        self.ratio = check.real("ratio", ratio, 1.0)
        self.weight = check.nonnegative("weight", weight)
        self.stride = check.integer("stride", stride, 0)
        self.milestones = tuple(check.integer("milestones", epoch, 0) for epoch in milestones)
        self.means: list[float] = []
        self._sum, self._count = 0.0, 0

    @property
    def epoch(self) -> int:
        return len(self.means)

    @property
    def active(self) -> bool:
        """Whether there is an epoch to compare with, away from the milestones."""
        near = any(abs(self.epoch - milestone) <= self.stride for milestone in self.milestones)
        return bool(self.means) and not near

    @property
    def gap(self) -> float:
        """Allowed distance from the mean of the last epoch."""
        change = self.means[-1] - self.means[-2] if len(self.means) > 1 else 0.0
        return min(max(self.gamma_max / self.ratio, change), self.gamma_max)

    def loss(self, adv_loss: Tensor, clean_loss: Tensor) -> Tensor:
        """What to differentiate for this batch, given both losses with their graphs."""
        clean = float(clean_loss.detach())
        self._sum, self._count = self._sum + clean, self._count + 1
        if not self.active or abs(clean - self.means[-1]) <= self.gap:
            return adv_loss
        sign = 1.0 if clean > self.means[-1] else -1.0
        return adv_loss + sign * self.weight * clean_loss

    def end_epoch(self) -> None:
        """Close an epoch; without a batch in it nothing happens."""
        if self._count:
            self.means.append(self._sum / self._count)
        self._sum, self._count = 0.0, 0

    def state_dict(self) -> dict[str, Any]:
        """What must be saved to continue exactly."""
        return {"means": list(self.means), "sum": self._sum, "count": self._count}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take over a saved state."""
        self.means = list(state_dict["means"])
        self._sum, self._count = state_dict["sum"], state_dict["count"]


class WeightCentralization(StepHook):
    """Pulls the weights towards the mean of those at the ends of past epochs; for any optimizer.

        g <- g + 2 coef (w - w_c),   the gradient of the penalty coef |w - w_c|^2;   w_c = mean of the past epochs

    Nothing happens in the first epoch. Call `end_epoch` after each.

    Args:
        optimizer: any `torch.optim.Optimizer` that takes gradients.
        coef: strength of the pull, >= 0.

    Cost: one tensor per parameter. Source: Zhao et al. (2023), ICCV 2023.
    """

    own = ("epochs",)

    def __init__(self, optimizer: Optimizer | None = None, coef: float = 0.01) -> None:
        self.coef = check.nonnegative("coef", coef)
        self.epochs = 0
        super().__init__(optimizer)

    def on_gradients(self, params: list[Tensor]) -> None:
        for param in params:
            if param in self.state:
                pull = param - self.state[param]["center"]
                param.grad.add_(pull, alpha=2 * self.coef)  # type: ignore[union-attr]

    @torch.no_grad()
    def end_epoch(self) -> None:
        """Take the present weights into the mean."""
        self.epochs += 1
        for param in self._params():
            state = self.state.setdefault(param, {"center": param.detach().clone(), "epochs": 0})
            state["epochs"] += 1
            state["center"].lerp_(param, 1 / state["epochs"])


def adversarial_finetune(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    attack: Callable[[nn.Module, Tensor, Tensor], Tensor],
    epochs: int = 10,
    lr: float = 0.01,
    *,
    steps_per_epoch: int,
    momentum: float = 0.9,
    weight_decay: float = 5e-4,
    schedule: Callable[[Optimizer, int], Any] | None = SlowStartFastDecay,
    loss: Callable[[Tensor, Tensor], Tensor] = F.cross_entropy,
) -> int:
    """Make a naturally trained network robust by a few epochs on attacked batches, with SGD.

    Args:
        model: the trained network; changed in place.
        batches: `(inputs, labels)`; at least `epochs * steps_per_epoch` of them, e.g. an endless iterator.
        attack: `(model, inputs, labels) -> inputs`, e.g. `partial(pgd, eps=8 / 255, alpha=2 / 255, steps=10)`.
        epochs: number of passes, at least 1.
        lr: the peak of the learning rate, > 0.
        steps_per_epoch: batches of a pass, at least 1.
        momentum, weight_decay: of SGD.
        schedule: `(optimizer, total_steps) ->` object with `step()`, None for a constant rate.
        loss: `loss(model(inputs), labels)`.

    Returns:
        Steps taken. Cost: one attack and one forward and backward pass per step. Source: Jeddi, Shafiee, Wong (2020),
        arXiv 2012.13628.
    """
    total = check.integer("epochs", epochs, 1) * check.integer("steps_per_epoch", steps_per_epoch, 1)
    check.positive("lr", lr)
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum, weight_decay=weight_decay)
    rate = schedule(optimizer, total) if schedule is not None else None
    source, taken = iter(batches), 0
    model.train()
    for inputs, labels in source:
        attacked = attack(model, inputs, labels)
        optimizer.zero_grad()
        loss(model(attacked), labels).backward()
        optimizer.step()
        if rate is not None:
            rate.step()
        taken += 1
        if taken == total:
            return taken
    raise InputError(f"batches ended after {taken} of {total} steps; give an endless iterator")
