"""MeZO and ZO-AdaMU: fine-tuning by two forward passes per step along one random direction."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from typing_extensions import Unpack

from hasten.core import check
from hasten.core.card import Card, LogReal
from hasten.optim.adapter import KINDS, Parts, companion, optimizer
from hasten.optim.base import NonFiniteGradientError, Options, RuleOptimizer
from hasten.optim.layout import real, work_dtype
from hasten.optim.zeroth_order.probes import Loss, source, undone

Draw = Callable[[Tensor], Tensor]

CARD = Card(
    name="zo-adamu",
    family="optim",
    paper_id=318,
    title="ZO-AdaMU Optimizer: Adapting Perturbation by the Momentum and Uncertainty in Zeroth-order Optimization",
    authors="Jiang et al.",
    year=2024,
    arxiv="2312.15184",
    summary="Two forward passes along a random direction that leans more and more on the direction before it.",
    cost="Two forward passes; one tensor of state per parameter and a copy while evaluating; no backward pass.",
    when="Fine-tuning where only forward passes fit into memory, and MeZO is too slow or too noisy.",
    kinds=KINDS,
    needs=("loss",),
    use="optimizer = hasten.optim.ZOAdaMU(model.parameters(), total_steps{hyper})\n"
    "for inputs, labels in loader:\n    optimizer.step(lambda: loss_fn(model(inputs), labels))",
    search_space={"lr": LogReal(1e-6, 1e-1)},
)
PLAIN = Card(
    name="mezo",
    family="optim",
    title="Fine-Tuning Language Models with Just Forward Passes",
    authors="Malladi et al.",
    year=2023,
    arxiv="2305.17333",
    summary="SGD along one random direction per step, measured by two forward passes; the yardstick of its kind.",
    cost="Two forward passes; no state, a copy of the parameters while evaluating; no backward pass.",
    when="Fine-tuning where only forward passes fit into memory.",
    kinds=KINDS,
    needs=("loss",),
    use="optimizer = hasten.optim.MeZO(model.parameters(){hyper})\n"
    "for inputs, labels in loader:\n    optimizer.step(lambda: loss_fn(model(inputs), labels))",
    search_space={"lr": LogReal(1e-6, 1e-1)},
)


class TwoPoint(RuleOptimizer):
    """What rules share that see a loss at `x + eps u` and `x - eps u` and nothing else.

    A subclass gives the direction `u` of a parameter, which must be the same when it is asked for again in one step,
    and what is done with the slope `(f(x + eps u) - f(x - eps u)) / (2 eps)`. Groups may have `eps` of their own.

    Attributes:
        forward_only: it sees values, not gradients: every parameter is moved, whatever the loss depends on.
    """

    takes = "loss"
    kept = ("steps",)
    forward_only: ClassVar[bool] = True
    _at = 0.0

    def check_group(self, group: Mapping[str, Any]) -> None:
        check.positive("eps", group["eps"])
        check.integer("seed", group["seed"], 0)
        check.one_of("exact", group["exact"], (True, False))

    def direction(self, group: Mapping[str, Any], param: Tensor, draw: Draw, t: int) -> Tensor:
        """The direction of one parameter; `draw(param)` gives standard normals."""
        raise NotImplementedError

    def move(self, group: Mapping[str, Any], param: Tensor, p: Tensor, draw: Draw, slope: float, t: int) -> None:
        """Change the values `p` of a parameter in place, given the slope along its direction."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Two evaluations and an update; `closure` returns the loss. Returns the mean of the two losses."""
        params = [param for group in self.param_groups for param in self._active(group)]
        f = Loss(closure, params, type(self).__name__)
        with undone(params) if self.param_groups[0]["exact"] else self._walked_back() as undo:
            losses = []
            for side in (1.0, -1.0):
                self._displace(side)
                losses.append(f())
                undo()
        loss = torch.tensor(0.5 * (losses[0] + losses[1]))
        difference = losses[0] - losses[1]
        if not math.isfinite(difference) and self.on_nonfinite != "ignore":
            if self.on_nonfinite == "skip":
                self.skipped += 1
                return loss
            raise NonFiniteGradientError(
                f"the loss near the parameters is {losses[0]:g} to one side and {losses[1]:g} to the other; nothing "
                "was changed. Lower the learning rate or eps, or choose on_nonfinite='skip'"
            )
        self._update(difference)
        return loss

    def _update(self, difference: float) -> None:
        for place, group in enumerate(self.param_groups):
            options, t, draw = self._options(group), group.get("steps", 0) + 1, self._source(place, group)
            slope = (-difference if group["maximize"] else difference) / (2 * options["eps"])
            for param in self._active(group):
                seen = real(param.detach())
                p = seen.to(work_dtype(param.dtype))
                if options["weight_decay"]:
                    p.mul_(1 - options["lr"] * options["weight_decay"])
                self.move(options, param, p, draw, slope, t)
                if p is not seen:
                    seen.copy_(p)
            group["steps"] = t

    def _displace(self, scale: float) -> None:
        """`p <- p + scale * eps * u` for all parameters, one at a time."""
        if scale == 0.0:
            return
        self._at += scale
        for place, group in enumerate(self.param_groups):
            options, t, draw = self._options(group), group.get("steps", 0) + 1, self._source(place, group)
            for param in self._active(group):
                u = self.direction(options, param, draw, t)
                seen = real(param.detach())
                seen.add_(u.to(seen.dtype), alpha=scale * options["eps"])

    @contextmanager
    def _walked_back(self) -> Iterator[Callable[[], None]]:
        """As `undone`, to rounding errors and without a copy."""
        self._at = 0.0
        try:
            yield lambda: self._displace(-self._at)
        finally:
            self._displace(-self._at)

    def _source(self, place: int, group: Mapping[str, Any]) -> Draw:
        return source(group["seed"], place, group.get("steps", 0))

    @staticmethod
    def _active(group: Mapping[str, Any]) -> list[Tensor]:
        return [param for param in group["params"] if param.requires_grad and param.numel()]


@optimizer(PLAIN)
class MeZO(TwoPoint):
    """SGD along one random direction per step, by two forward passes.

        z ~ N(0, 1);  r = (f(x + eps z) - f(x - eps z)) / (2 eps);  x <- x - lr * (r z + weight_decay x)

        loss = optimizer.step(lambda: loss_fn(model(inputs), labels))

    The direction is made again from its seed whenever it is needed. Dropout and batches drawn inside the closure stay
    the same within a step.

    Args:
        params: parameters, named parameters or groups of them; all that require gradients are moved.
        lr: learning rate; about 1e-6 for language models, 1e-3 for small problems.
        eps: length of the probes, > 0.
        weight_decay: decoupled, times `lr`.
        seed: of the directions.
        exact: keep a copy of the parameters while evaluating, so that they come back exactly; without it, in single
            precision, they come back to rounding errors.
        options: `maximize`, `on_nonfinite`, see `Options`; `backend` has no effect.

    Raises:
        InputError: `step` got no closure, or one that does not return a number.
        NonFiniteGradientError: a loss is infinite or NaN; the parameters are as they were.

    Cost: two forward passes, three normal directions. Prefer it where backward passes do not fit into memory, from a
    pre-trained start. Source: Malladi et al. (2023), arXiv 2305.17333.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-6,
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        seed: int = 0,
        exact: bool = True,
        **options: Unpack[Options],
    ) -> None:
        hyper = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "seed": seed, "exact": exact}
        super().__init__(params, hyper, **options)

    def direction(self, group: Mapping[str, Any], param: Tensor, draw: Draw, t: int) -> Tensor:
        return draw(param)

    def move(self, group: Mapping[str, Any], param: Tensor, p: Tensor, draw: Draw, slope: float, t: int) -> None:
        p.add_(draw(param), alpha=-group["lr"] * slope)


def _assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
    own: dict[str, Any] = {"warm": horizon // 10, **hyper}
    return Parts(ZOAdaMU(model.parameters(), horizon, **own))


@companion(CARD, _assemble)
class ZOAdaMU(TwoPoint):
    """MeZO with momentum inside the random direction, and steps scaled by the direction's own second moment.

        zc ~ N(0, a);  zh ~ N(H, 1 - a);  u = b1 zc + (1-b1) zh;  v = b2 zc^2 + (1-b2) zh^2
        r = (f(x + eps u) - f(x - eps u)) / (2 eps)
        x <- x - lr * (r u / sqrt(v + 1e-8) + weight_decay x);  H = sign(r) u

    The weights `a`, `b1`, `b2` are 1 for the first `warm` steps, then fall as half a cosine, each with a period of
    its own, until `anneal_end * total_steps`, and stay there.

    Args:
        params: parameters, named parameters or groups of them; all that require gradients are moved.
        total_steps: length of the run.
        lr: learning rate; about 1e-6 for language models, 1e-3 for small problems.
        eps: length of the probes, > 0.
        warm: steps before the momentum sets in; at least `anneal_end * total_steps` means never.
        anneal_end: share of the run after which the weights stay, in (0, 1].
        weight_decay: decoupled, times `lr`; give biases and norms a group without it.
        seed: of the directions.
        exact: keep a copy of the parameters while evaluating, so that they come back exactly.
        options: `maximize`, `on_nonfinite`, see `Options`; `backend` has no effect.

    Raises:
        InputError: `step` got no closure, or one that does not return a number.
        NonFiniteGradientError: a loss is infinite or NaN; the parameters are as they were.

    Cost: two forward passes, six normal directions, one tensor of state per parameter. Prefer it to MeZO where steps
    are noisy. The same direction serves to probe and to move, while the published trainer probes along another
    mixture. Source: Jiang et al. (2024), arXiv 2312.15184.
    """

    buffers = ("history",)

    def __init__(
        self,
        params: Any,
        total_steps: int = 20_000,
        lr: float = 1e-6,
        eps: float = 1e-3,
        warm: int = 1024,
        anneal_end: float = 0.8,
        weight_decay: float = 0.0,
        seed: int = 0,
        exact: bool = True,
        **options: Unpack[Options],
    ) -> None:
        hyper: dict[str, Any] = {"lr": lr, "eps": eps, "weight_decay": weight_decay, "seed": seed, "exact": exact}
        hyper |= {"total_steps": total_steps, "warm": warm, "anneal_end": anneal_end}
        super().__init__(params, hyper, **options)

    def check_group(self, group: Mapping[str, Any]) -> None:
        super().check_group(group)
        check.integer("total_steps", group["total_steps"], 1)
        check.integer("warm", group["warm"], 0)
        check.real("anneal_end", group["anneal_end"], 0.0, 1.0, open_low=True)

    def direction(self, group: Mapping[str, Any], param: Tensor, draw: Draw, t: int) -> Tensor:
        return self._mixture(group, param, draw, t)[0]

    def move(self, group: Mapping[str, Any], param: Tensor, p: Tensor, draw: Draw, slope: float, t: int) -> None:
        u, fresh, past = self._mixture(group, param, draw, t)
        b2 = annealed(group, t, 1.5)
        second = b2 * fresh.square() + (1 - b2) * past.square()
        p.addcdiv_(u, second.add_(1e-8).sqrt_(), value=-group["lr"] * slope)
        state = self.state[param]
        state["step"] = t
        state["history"] = u.mul_(math.copysign(1.0, slope))

    def _mixture(self, group: Mapping[str, Any], param: Tensor, draw: Draw, t: int) -> tuple[Tensor, Tensor, Tensor]:
        a, b1 = annealed(group, t, 1.0), annealed(group, t, 0.1)
        fresh, past = draw(param) * a**0.5, draw(param) * (1 - a) ** 0.5
        if "history" in self.state[param]:
            past += self.state[param]["history"]
        return b1 * fresh + (1 - b1) * past, fresh, past


def annealed(group: Mapping[str, Any], t: int, speed: float) -> float:
    """A weight that falls from 1 as half a cosine whose period shrinks by `speed`, at step `t` (from 1)."""
    total, warm = group["total_steps"], group["warm"]
    end = int(group["anneal_end"] * total)
    if t - 1 < warm or end <= warm:
        return 1.0
    since = min(t - 1, end) - warm
    period = total - speed * (total - end) / (end - warm) * since
    return 0.5 * (1 + math.cos(math.pi * since / period))
