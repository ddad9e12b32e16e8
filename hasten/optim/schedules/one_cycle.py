"""One cycle of the learning rate up and down, the range test that finds its peak, an estimate without a test."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal, Real
from hasten.core.errors import InputError
from hasten.optim.adapter import KINDS, schedule
from hasten.optim.schedules.base import Schedule

CARD = Card(
    name="one-cycle",
    family="optim",
    paper_id=60,
    title="Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates",
    authors="Smith, Topin",
    year=2018,
    arxiv="1708.07120",
    summary="Raises the learning rate far above the usual one and lowers it again, once; momentum moves opposite.",
    cost="None; the range test that finds the peak takes some hundred steps.",
    when="A short budget of steps is fixed in advance and the network stands large learning rates (batch norm).",
    kinds=KINDS,
    use="optimizer = torch.optim.AdamW(model.parameters(){hyper.lr})\n"
    "schedule = hasten.optim.OneCycle(optimizer, total_steps{hyper})",
    search_space={"lr": LogReal(1e-4, 1e-1), "pct_up": Real(0.2, 0.5), "shape": Choice("linear", "cos")},
)


@schedule(CARD)
class OneCycle(Schedule):
    """One cycle of the learning rate, with the momentum moving opposite; for any optimizer.

        0 .. up:          max_lr / div -> max_lr           momentum 0.95 -> 0.85      (up = pct_up * total_steps - 1)
        up .. 2 up:       max_lr -> max_lr / div           momentum 0.85 -> 0.95
        2 up .. the end:  max_lr / div -> max_lr / (div * final_div)

    The large rates in the middle act as a regulariser; less weight decay and dropout are then needed. Prefer it for
    short training of networks with normalisation layers, with the peak from `lr_range_test`.

    Args:
        optimizer: any `torch.optim.Optimizer`.
        total_steps: steps of the whole cycle; the last rate stays in force afterwards.
        max_lr: the peak, or one per parameter group; None takes the optimizer's own learning rate for it.
        pct_up: share of the steps that goes up, and that comes down again, in (0, 0.5].
        div: peak over start, at least 1.
        final_div: start over end, at least 1.
        shape: `linear` or `cos` between the corners.
        cycle_momentum: momentum (of Adam-type rules: the first beta) at the ends and at the peak, each in [0, 1);
            None leaves it alone.
        last_epoch: steps already taken, -1 for none.

    Raises:
        InputError: an argument is out of range, or the optimizer has neither momentum nor betas to be cycled.

    Cost: none. Source: Smith, Topin (2018), arXiv 1708.07120.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int,
        max_lr: float | Sequence[float] | None = None,
        pct_up: float = 0.45,
        div: float = 10.0,
        final_div: float = 100.0,
        shape: str = "linear",
        cycle_momentum: tuple[float, float] | None = (0.95, 0.85),
        last_epoch: int = -1,
    ) -> None:
        self.total_steps = check.integer("total_steps", total_steps, 1)
        self.pct_up = check.real("pct_up", pct_up, 0.0, 0.5, open_low=True)
        self.div = check.real("div", div, 1.0)
        self.final_div = check.real("final_div", final_div, 1.0)
        self.shape = check.one_of("shape", shape, ("linear", "cos"))
        self.cycle_momentum = cycle_momentum
        if not isinstance(optimizer, Optimizer):
            raise InputError(f"optimizer must be a torch.optim.Optimizer, got {type(optimizer).__name__}")
        if cycle_momentum is not None:
            for place, value in enumerate(cycle_momentum):
                check.fraction(f"cycle_momentum[{place}]", value)
            if not any({"momentum", "betas"} & set(group) for group in optimizer.param_groups):
                raise InputError(
                    f"cycle_momentum={cycle_momentum} finds neither momentum nor betas in {type(optimizer).__name__}; "
                    "give cycle_momentum=None"
                )
        if max_lr is not None and last_epoch == -1:
            for group, peak in zip(optimizer.param_groups, _peaks(max_lr, len(optimizer.param_groups))):
                group["lr"] = group["initial_lr"] = peak
        super().__init__(optimizer, last_epoch)

    def factor(self, step: int) -> float:
        start = 1 / self.div
        return self._between(step, (start, 1.0, start, start / self.final_div))

    def step(self, epoch: int | None = None) -> None:
        """Set the learning rate and the momentum of the coming step."""
        super().step(epoch)
        if self.cycle_momentum is None:
            return
        ends, peak = self.cycle_momentum
        momentum = self._between(self.last_epoch, (ends, peak, ends, ends))
        for group in self.optimizer.param_groups:
            if "betas" in group:
                group["betas"] = (momentum, *group["betas"][1:])
            elif "momentum" in group:
                group["momentum"] = momentum

    def _between(self, step: int, values: tuple[float, float, float, float]) -> float:
        up = max(self.pct_up * self.total_steps - 1, 0.0)
        corners = (0.0, up, 2 * up, float(self.total_steps - 1))
        for (left, right), (first, last) in zip(pairwise(corners), pairwise(values)):
            if left <= step <= right and left < right:
                share = (step - left) / (right - left)
                return first + (last - first) * (
                    share if self.shape == "linear" else (1 - math.cos(math.pi * share)) / 2
                )
        return values[-1]


@dataclass(frozen=True)
class RangeTest:
    """What `lr_range_test` saw.

    Attributes:
        rates: the learning rates, growing by a constant factor.
        losses: the smoothed loss at each.
        steepest: the rate at which the smoothed loss fell fastest.
        diverging: the rate at which it passed 4 times its least value; inf if it never did.
        max_lr: a peak for `OneCycle`: the geometric mean of `steepest` and the last rate that was stood.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    steepest: float
    diverging: float

    @property
    def max_lr(self) -> float:
        return math.sqrt(self.steepest * min(self.diverging, self.rates[-1]))


def lr_range_test(
    model: nn.Module,
    loss: Callable[[Any, Any], Tensor],
    data: Iterable[tuple[Any, Any]],
    lo: float = 1e-5,
    hi: float = 10.0,
    steps: int = 200,
    optimizer: Callable[[Any], Optimizer] | None = None,
) -> RangeTest:
    """Train a copy of the network while the learning rate grows exponentially, until the loss explodes.

    Args:
        model: the network; it stays as it is.
        loss: `loss(model(inputs), labels)` -> 0-dim tensor.
        data: batches `(inputs, labels)`; begun anew when they end.
        lo, hi: first and last rate.
        steps: how many rates, at least 2.
        optimizer: makes the optimizer from the parameters; SGD with momentum 0.9 if not given.

    Raises:
        InputError: an argument is out of range, there are no data, or the loss is not finite at the start.

    Source: Smith (2015), arXiv 1506.01186; Smith, Topin (2018), arXiv 1708.07120.
    """
    check.positive("lo", lo)
    check.real("hi", hi, lo, open_low=True)
    check.integer("steps", steps, 2)
    trained = copy.deepcopy(model)
    rule = (optimizer or (lambda params: torch.optim.SGD(params, lr=lo, momentum=0.9)))(trained.parameters())
    batches, rates, losses, mean = iter(data), [], [], 0.0
    for step in range(steps):
        rate = lo * (hi / lo) ** (step / (steps - 1))
        for group in rule.param_groups:
            group["lr"] = rate
        try:
            inputs, labels = next(batches)
        except StopIteration:
            batches = iter(data)
            inputs, labels = _first(batches)
        rule.zero_grad()
        value = loss(trained(inputs), labels)
        value.backward()
        seen = float(value.detach())
        if not math.isfinite(seen):
            break
        mean = 0.9 * mean + 0.1 * seen
        rates.append(rate)
        losses.append(mean / (1 - 0.9 ** (step + 1)))
        if losses[-1] > 4 * min(losses):
            break
        rule.step()
    if len(rates) < 2:
        raise InputError(f"the loss is not finite at the learning rate lo={lo}: check the data, or lower lo")
    falls = [after - before for before, after in pairwise(losses)]
    steepest = rates[min(range(len(falls)), key=falls.__getitem__)]
    return RangeTest(tuple(rates), tuple(losses), steepest, math.inf if len(rates) == steps else rates[-1])


def optimal_lr_estimate(
    iterates: Sequence[Tensor] | Tensor, lr: float | Sequence[float], smooth: float = 0.9
) -> Tensor:
    """Best learning rate estimated from successive iterates of gradient descent, without second derivatives.

        e = sum |x1 - x0| / sum |(x1 - x0) / lr0 - (x2 - x1) / lr1|,  then a running average

    On a quadratic of curvature h in one variable this is 1/h.

    Args:
        iterates: the weights (n, ...) after successive steps, n >= 3.
        lr: learning rate of the steps between them, one number or n - 1.
        smooth: weight of the past in the running average, in [0, 1).

    Returns:
        Estimates (n - 2,), inf where the iterates show no curvature.

    Source: Smith, Topin (2018), arXiv 1708.07120.
    """
    check.fraction("smooth", smooth)
    points = torch.stack([point.detach().flatten() for point in iterates])
    if len(points) < 3:
        raise InputError(f"iterates must hold at least 3 points, got {len(points)}")
    rates = torch.as_tensor(lr, dtype=points.dtype).expand(len(points) - 1)
    if not bool((rates > 0).all()):
        raise InputError(f"lr must be positive, got {float(rates.min())}")
    moves = points.diff(dim=0)
    slopes = moves / rates[:, None]
    found = moves[:-1].abs().sum(1) / slopes.diff(dim=0).abs().sum(1)
    for place in range(1, len(found)):
        found[place] = smooth * found[place - 1] + (1 - smooth) * found[place]
    return found


def _peaks(max_lr: float | Sequence[float], groups: int) -> list[float]:
    peaks = list(max_lr) if isinstance(max_lr, Sequence) else [max_lr] * groups
    if len(peaks) != groups:
        raise InputError(f"max_lr holds {len(peaks)} rates, but the optimizer has {groups} parameter groups")
    return [float(check.positive("max_lr", peak)) for peak in peaks]


def _first(batches: Any) -> Any:
    for batch in batches:
        return batch
    raise InputError("data holds no batches, or is an iterator that ran out; give a list or a loader")
