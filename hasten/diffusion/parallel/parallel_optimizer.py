"""DreamPropeller: many steps of an optimisation at once, by Picard iteration around any optimizer."""

from __future__ import annotations

import builtins
import copy
import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hasten.core import check
from hasten.core.card import Card, Choice, LogReal
from hasten.core.errors import DivergedError, InputError
from hasten.core.kinds.minimise import Minimisation
from hasten.core.method import Method
from hasten.core.registry import register

CARD = Card(
    name="dreampropeller",
    family="diffusion",
    title="DreamPropeller: Supercharge Text-to-3D Generation with Parallel Sampling",
    authors="Zhou, Shih, Meng & Ermon",
    year=2023,
    arxiv="2311.17082",
    paper_id=182,
    summary="Takes the gradients of a window of coming steps at once, at guesses of where these steps will begin.",
    cost="`window` gradients per round and as many copies of the parameters; a fraction of the steps in rounds.",
    when="When one gradient leaves devices idle and the time of a single optimisation counts, as in text-to-3D.",
    kinds=("minimise",),
    search_space={"lr": LogReal(1e-4, 1.0), "window": Choice(4, 7, 14), "threshold": LogReal(1e-8, 1e-2)},
    use=(
        "z = torch.randn(8, 2)\n"
        "make = lambda parameters: torch.optim.Adam(parameters{hyper.lr})\n"
        "gradient = lambda copy, step: [-denoiser.score(copy[0], 0.5 - 0.01 * step)]\n"
        "optimizer = hasten.diffusion.ParallelOptimizer([z], make, gradient{hyper})\n"
        "optimizer.run(20)"
    ),
)


Copy = list[Tensor]
Gradient = Callable[[Any, Any], Sequence[Tensor]]


class ParallelOptimizer:
    """Picard iteration on a window of coming steps of any optimizer.

    Kept are guesses `theta[b], ..., theta[b+P]` of the parameters before steps b to b+P, the first one final. A round
    takes the gradients `g_i` of steps b+i at the guesses `theta[b+i]`, all at once, and then makes the steps one after
    the other with the real optimizer from theta[b]: `theta'[b+i+1] = step(theta'[b+i], g_i)`. The first slot at which
    the mean square of `theta' - theta` exceeds the threshold becomes the new b (the window's last one if none does),
    with the optimizer as it was there; all slots from there on take the new values, and those that enter the window
    start from the last. The threshold follows the errors: `threshold = ema_decay threshold + (1 - ema_decay) error`.
    A gradient that is not finite, at a guess, ends the round before its step.

    With `threshold=0`, which stays 0, a round makes one step and the result is the optimizer's own.

    Args:
        parameters: tensors to optimise; they hold the final values after every round.
        make: makes the optimizer of a list of tensors, e.g. `lambda p: torch.optim.Adam(p, lr=0.01)`.
        gradient: `gradient(copy, step)`, the gradients at a copy (a list of tensors) in step number `step`. Randomness
            must follow from `step` alone, or a step repeated in the next round is another one.
        window: P, steps per round.
        threshold: mean square change, per number, that ends a round's progress; in squared units of the parameters.
        ema_decay: how slowly the threshold follows the errors, in [0, 1].
        adapt: the error that it follows, `median` (of the window's middle slot; errors grow along the window) or
            `mean`.
        batched: hand over the whole window in one call: a list of tensors with the window as their first dimension,
            and the steps as an int64 tensor; the gradients come back in the same form.
        map: maps `gradient` over the window otherwise; the `map` of an executor does it on several devices.
        after: `after(step, optimizer)` after each step that is made: a learning rate, more or fewer rows of the
            parameters. It must depend on the step and the parameters alone. Where the number of rows changes, guesses
            are cut, or extended by the new rows, and gradients extended by zeros.

    Attributes:
        index: steps that are final.
        rounds: rounds so far.
        gradients: gradients taken so far.
        errors: errors along the window in the last round.

    Cost: P gradients per round and P + 1 copies of the parameters. Source: Zhou et al. (2023), arXiv 2311.17082.
    """

    def __init__(
        self,
        parameters: Iterable[Tensor],
        make: Callable[[list[Tensor]], torch.optim.Optimizer],
        gradient: Gradient,
        *,
        window: int = 7,
        threshold: float = 5.0,
        ema_decay: float = 0.9,
        adapt: str = "median",
        batched: bool = False,
        map: Callable[..., Iterable[Any]] = builtins.map,
        after: Callable[[int, torch.optim.Optimizer], object] | None = None,
    ) -> None:
        self.parameters = list(parameters)
        if not self.parameters:
            raise InputError("parameters are empty; hand over the tensors to optimise")
        for name, function in (("make", make), ("gradient", gradient), ("map", map)):
            if not callable(function):
                raise InputError(f"{name} must be a function, got {function!r}")
        self.gradient = gradient
        self.window = check.integer("window", window, 1)
        self.threshold = float(check.nonnegative("threshold", threshold))
        self.ema_decay = check.real("ema_decay", ema_decay, 0.0, 1.0)
        self.adapt = check.one_of("adapt", adapt, ("median", "mean"))
        self.batched, self.map, self.after = batched, map, after
        self.optimizer = make(self.parameters)
        self.index = self.rounds = self.gradients = 0
        self.errors: list[float] = []
        self._slots: list[Copy] = [self._present()]

    def run(self, steps: int) -> None:
        """Rounds until `steps` steps, counted from the very first, are final."""
        check.integer("steps", steps, 1)
        while self.index < steps:
            self.round(steps)

    def round(self, steps: int | None = None) -> None:
        """One round; the window ends at step `steps`, if that is given."""
        size = self.window if steps is None else min(self.window, steps - self.index)
        self._slots += [self._slots[-1]] * (size + 1 - len(self._slots))
        gradients = self._gradients(self._slots[:size])
        self.rounds += 1
        self.gradients += size
        self.errors = []
        stop, stopped = 0, None
        for i, gradient in enumerate(gradients):
            if not all(math.isfinite(slope.sum()) for slope in gradient):
                if i == 0:
                    raise DivergedError(f"round {self.rounds}: the gradient of step {self.index + 1} is not finite")
                break
            self._step(self.index + i, gradient)
            now = self._present()
            self.errors.append(_change(now, self._slots[i + 1]))
            self._slots[i + 1] = now
            if stopped is None:
                stop = i + 1
                if self.errors[-1] > self.threshold and stop < size:
                    stopped = copy.deepcopy(self.optimizer.state_dict())
        done = len(self.errors)
        self._slots[done + 1 :] = [self._slots[done]] * (len(self._slots) - done - 1)
        if stopped is not None:
            self._restore(self._slots[stop], stopped)
        if self.threshold > 0.0 and math.isfinite(sum(self.errors)):
            followed = self.errors[done // 2] if self.adapt == "median" else sum(self.errors) / done
            self.threshold = self.ema_decay * self.threshold + (1.0 - self.ema_decay) * followed
        self._slots = self._slots[stop:]
        self.index += stop

    def _gradients(self, copies: list[Copy]) -> Iterable[Sequence[Tensor]]:
        """Gradients of all steps of the window."""
        steps = range(self.index, self.index + len(copies))
        if not self.batched:
            return list(self.map(self.gradient, [list(one) for one in copies], steps))
        stacked = [torch.stack(tensors) for tensors in zip(*copies)]
        return list(zip(*self.gradient(stacked, torch.tensor(steps, device=stacked[0].device))))

    @torch.no_grad()
    def _step(self, step: int, gradient: Sequence[Tensor]) -> None:
        if len(gradient) != len(self.parameters):
            raise InputError(f"gradient must return one tensor per parameter ({len(self.parameters)})")
        for parameter, slope in zip(self.parameters, gradient):
            parameter.grad = _resized(slope.detach().to(parameter), torch.zeros_like(parameter))
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.after is not None:
            self.after(step, self.optimizer)

    def _present(self) -> Copy:
        return [parameter.detach().clone() for parameter in self.parameters]

    def _restore(self, values: Copy, state: dict[str, Any]) -> None:
        for parameter, value in zip(self.parameters, values):
            parameter.data = value.clone()
        self.optimizer.load_state_dict(state)


def _change(now: Copy, before: Copy) -> float:
    """Mean square difference over all numbers."""
    total = sum((a - _resized(b, a)).square().sum() for a, b in zip(now, before))
    return float(total) / sum(a.numel() for a in now)


def _resized(value: Tensor, like: Tensor) -> Tensor:
    """`value` with as many rows as `like`: cut, or extended by those of `like`."""
    if value.shape == like.shape:
        return value
    if value.ndim == 0 or value.shape[1:] != like.shape[1:]:
        raise InputError(f"a gradient or guess of shape {tuple(value.shape)} does not fit {tuple(like.shape)}")
    return torch.cat((value[: len(like)], like[len(value) :]))


@dataclass
class DescentState:
    """A parallel descent under way."""

    optimizer: ParallelOptimizer

    @property
    def x(self) -> Tensor:
        """The point before the first step that is not final."""
        return self.optimizer.parameters[0].detach()


@dataclass(frozen=True)
class ParallelAdam(Method[Minimisation, DescentState]):
    """Adam on an explicit function, `window` steps per round; a step of a race is a round.

    Args:
        lr: of Adam.
        window, threshold, ema_decay: see `ParallelOptimizer`.
    """

    card = CARD
    lr: float = 1e-2
    window: int = 7
    threshold: float = 1e-4
    ema_decay: float = 0.9

    def __post_init__(self) -> None:
        check.positive("lr", self.lr)
        check.integer("window", self.window, 1)
        check.nonnegative("threshold", self.threshold)
        check.real("ema_decay", self.ema_decay, 0.0, 1.0)

    def init(self, problem: Minimisation, generator: torch.Generator) -> DescentState:
        seed = problem.generator.initial_seed()

        def gradient(copy: Copy, step: int) -> Copy:
            problem.generator.manual_seed(seed + step)
            return [problem.gradient(copy[0])]

        x = problem.x0.detach().clone()
        make = functools.partial(torch.optim.Adam, lr=self.lr)
        hyper = {"window": self.window, "threshold": self.threshold, "ema_decay": self.ema_decay}
        return DescentState(ParallelOptimizer([x], make, gradient, **hyper))

    def step(self, problem: Minimisation, state: DescentState) -> DescentState:
        state.optimizer.round()
        return state


register(CARD, ParallelAdam)(ParallelOptimizer)
