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
    """An optimizer (and its companions) behind the protocol, on training and on explicit functions alike."""

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
        if isinstance(problem, Training):
            problem.gradient()
        else:
            state.model.x.grad = problem.gradient(state.model.x.detach())  # type: ignore[union-attr]
        state.parts.optimizer.step()
        for after in state.parts.after:
            after()
        return state


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
