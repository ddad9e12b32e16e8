"""A user's file: a problem, and methods that behave well, badly and terribly."""

from __future__ import annotations

import math
import os
import time
from dataclasses import dataclass
from typing import Any

import torch

import hasten


def problem() -> hasten.Problem:
    scale = torch.logspace(0, 1, 5, dtype=torch.float64)

    def noisy(x: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return scale * x + 0.01 * torch.randn(5, generator=generator, dtype=torch.float64)

    return hasten.minimisation(
        "bowl",
        lambda x: 0.5 * (scale * x * x).sum(),
        torch.ones(5, dtype=torch.float64),
        noisy_gradient=noisy,
        target=0.01,
        budget=40,
        baseline="mine.good",
    )


@dataclass
class Point:
    x: torch.Tensor
    steps: int = 0


class Good(hasten.Method[Any, Point]):
    """Gradient descent."""

    def __init__(self, lr: float = 0.02, momentum: float = 0.0) -> None:
        self.lr, self.momentum = lr, momentum

    def init(self, problem: Any, generator: torch.Generator) -> Point:
        return Point(problem.x0.clone())

    def step(self, problem: Any, state: Point) -> Point:
        time.sleep(float(os.environ.get("STEP_SECONDS", "0")))
        state.x = state.x - self.lr * problem.gradient(state.x)
        state.steps += 1
        return state


class Raises(Good):
    def step(self, problem: Any, state: Point) -> Point:
        if state.steps == 3:
            raise ZeroDivisionError("no such luck")
        return super().step(problem, state)


class Diverges(Good):
    def step(self, problem: Any, state: Point) -> Point:
        state.x = state.x * -1e80
        return state


class Hangs(Good):
    def step(self, problem: Any, state: Point) -> Point:
        time.sleep(1000)
        return state


class Dies(Good):
    def step(self, problem: Any, state: Point) -> Point:
        os._exit(7)


class Lies(Good):
    """Prints to the channel that workers talk on."""

    def step(self, problem: Any, state: Point) -> Point:
        print("hello from a step")
        return super().step(problem, state)


class Nothing(Good):
    def step(self, problem: Any, state: Point) -> Point:
        state.x = torch.full_like(state.x, math.nan)
        return state


for method in (Good, Raises, Diverges, Hangs, Dies, Lies, Nothing):
    card = hasten.Card(
        name=method.__name__.lower(),
        family="mine",
        title=f"{method.__name__} descent",
        authors="Nobody",
        year=2000,
        summary="Gradient descent with a twist.",
        cost="one gradient",
        when="in tests",
        kinds=("minimise",),
        use="mine.run(problem{hyper})",
        search_space={"lr": hasten.LogReal(1e-3, 0.19)} if method in (Good, Lies) else {},
    )
    method.card = card
    hasten.register(card)(method)
