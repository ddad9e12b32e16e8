"""How the run loop drives optimizers: any `torch.optim.Optimizer`, alone or with what composes with it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hasten.core.card import Card
from hasten.core.kinds.minimise import Minimisation
from hasten.core.kinds.train import Training
from hasten.core.method import Method
from hasten.core.registry import register

T = TypeVar("T")
KINDS = ("train", "minimise")


@dataclass
class Parts:
    """What works together on one network.

    Attributes:
        optimizer: takes the step (filters sit on its hooks).
        after: called after every step, in order: schedules, averages.
        answer: the network to be measured instead of the trained one, e.g. an average; None for the trained one.
    """

    optimizer: Optimizer
    after: tuple[Callable[[], Any], ...] = ()
    answer: Callable[[], nn.Module] | None = None


Assemble = Callable[[nn.Module, int, Mapping[str, Any]], Parts]


class Point(nn.Module):
    """A tensor to be minimised over, dressed as a network, so that whatever works on networks works on it."""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x0.detach().clone())


@dataclass
class TrainState:
    """The network in training and the parts that train it."""

    model: nn.Module
    parts: Parts

    @property
    def x(self) -> Any:
        """The answer: a network, or the tensor of a minimisation."""
        model = self.parts.answer() if self.parts.answer else self.model
        return model.x if isinstance(model, Point) else model


class OptimizerMethod(Method[Any, TrainState]):
    """An optimizer (and its companions) behind the protocol, on training and on explicit functions alike.

    The optimizer's attribute `takes` says what its `step` is given: "gradients" (nothing; they are in place), "closure"
    (PyTorch's: computes loss and gradients anew and returns the loss) or "loss" (returns the loss, for rules that
    differentiate it themselves or not at all). The card of the last two says `needs=("loss",)`.
    """

    def __init__(self, card: Card, assemble: Assemble, hyper: Mapping[str, Any]) -> None:
        self.card = card  # type: ignore[misc]
        self.hyper = dict(hyper)
        self._assemble = assemble
        # Wrong hyper-parameters are refused here, before anything has run.
        assemble(Point(torch.zeros(1)), 1, self.hyper)

    def init(self, problem: Training | Minimisation, generator: torch.Generator) -> TrainState:
        model = problem.model if isinstance(problem, Training) else Point(problem.x0)
        return TrainState(model, self._assemble(model, problem.horizon or 1, self.hyper))

    def step(self, problem: Training | Minimisation, state: TrainState) -> TrainState:
        takes = getattr(state.parts.optimizer, "takes", "gradients")
        evaluate = _Evaluations(problem, state.model, with_loss=takes == "closure")
        if takes == "gradients":
            evaluate.backward()
            state.parts.optimizer.step()
        else:
            state.parts.optimizer.step(evaluate.backward if takes == "closure" else evaluate)  # type: ignore[arg-type]
        for after in state.parts.after:
            after()
        return state


class _Evaluations:
    """The closures of one step: all evaluations are on the batch (or sample) that the first one drew."""

    def __init__(self, problem: Training | Minimisation, model: nn.Module, with_loss: bool) -> None:
        self.problem = problem
        self.model = model
        self.with_loss = with_loss
        self.fresh = True

    def __call__(self) -> Tensor:
        """The loss, with its graph where gradients are recorded."""
        fresh, self.fresh = self.fresh, False
        if isinstance(self.problem, Training):
            return self.problem.evaluate(fresh)
        return self.problem.evaluate(self.model.x, fresh)  # type: ignore[arg-type]

    def backward(self) -> Tensor | None:
        """Put the gradients in place; returns the loss if it was asked for."""
        fresh, self.fresh = self.fresh, False
        if isinstance(self.problem, Training):
            return self.problem.gradient(fresh)
        point: Any = self.model.x
        if self.with_loss:
            with torch.enable_grad():
                loss = self.problem.evaluate(point, fresh)
                (point.grad,) = torch.autograd.grad(loss, point)
            return loss.detach()
        point.grad = self.problem.gradient(point.detach(), fresh)
        return None


def optimizer(card: Card) -> Callable[[T], T]:
    """Register an optimizer class: `Class(parameters, **hyper)`."""

    def enter(cls: T) -> T:
        def assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
            return Parts(cls(model.parameters(), **hyper))  # type: ignore[operator]

        return companion(card, assemble)(cls)

    return enter


def companion(card: Card, assemble: Assemble) -> Callable[[T], T]:
    """Register what works beside an optimizer; `assemble(model, horizon, hyper)` puts it together for a race."""

    def build(**hyper: Any) -> OptimizerMethod:
        return OptimizerMethod(card, assemble, hyper)

    return register(card, build)


def hook(card: Card, base: Callable[..., Optimizer] = torch.optim.AdamW) -> Callable[[T], T]:
    """Register a `StepHook` class, `Class(optimizer, **hyper)`; it races on `base`, which gets the `lr`."""

    def enter(cls: T) -> T:
        def assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
            optimizer, own = _base(base, model, hyper)
            cls(optimizer, **own)  # type: ignore[operator]
            return Parts(optimizer)

        return companion(card, assemble)(cls)

    return enter


def schedule(card: Card, base: Callable[..., Optimizer] = torch.optim.AdamW) -> Callable[[T], T]:
    """Register a schedule class, `Class(optimizer, total_steps, **hyper)`; it races on `base`, which gets the `lr`."""

    def enter(cls: T) -> T:
        def assemble(model: nn.Module, horizon: int, hyper: Mapping[str, Any]) -> Parts:
            optimizer, own = _base(base, model, hyper)
            return Parts(optimizer, (cls(optimizer, horizon, **own).step,))  # type: ignore[operator]

        return companion(card, assemble)(cls)

    return enter


def _base(
    base: Callable[..., Optimizer], model: nn.Module, hyper: Mapping[str, Any]
) -> tuple[Optimizer, dict[str, Any]]:
    own = dict(hyper)
    given = {"lr": own.pop("lr")} if "lr" in own else {}
    return base(model.parameters(), **given), own
