"""The one loop of the library: one method on one problem with one seed."""

from __future__ import annotations

import math
import re
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from hasten.core import check
from hasten.core.errors import DivergedError, HastenError, InputError, MismatchError, ProblemError
from hasten.core.meter import PeakMemory
from hasten.core.method import Method
from hasten.core.problem import Instance, Problem
from hasten.core.trace import Trace


@dataclass(frozen=True)
class Budget:
    """What a run may spend; it ends when any limit is met. `seconds` counts the method's own time."""

    steps: int | None = None
    seconds: float | None = None
    calls: int | None = None

    def __post_init__(self) -> None:
        if self.steps is not None:
            check.integer("budget in steps", self.steps, 1)
        if self.seconds is not None:
            check.positive("budget in seconds", self.seconds)
        if self.calls is not None:
            check.integer("budget in calls", self.calls, 1)

    @classmethod
    def parse(cls, value: Budget | int | str | None, default: int) -> Budget:
        """`500` or `"500"` steps, `"30s"` seconds, `"2000calls"` oracle calls; None means `default` steps."""
        if isinstance(value, Budget):
            return value
        if value is None:
            return cls(steps=default)
        match = re.fullmatch(r"([0-9.eE+-]+) ?(s|calls|steps)?", str(value).strip())
        try:
            number = float(match[1]) if match else math.nan
        except ValueError:
            number = math.nan
        if match and number > 0 and math.isfinite(number):
            if match[2] == "s":
                return cls(seconds=number)
            if number == int(number):
                return cls(calls=int(number)) if match[2] == "calls" else cls(steps=int(number))
        raise InputError(
            f"budget must be a positive number of steps (500), seconds ('30s') or calls ('2000calls'); got {value!r}"
        )

    def describe(self) -> str:
        """In words: `500 steps`."""
        parts = [(self.steps, "steps"), (self.seconds, "seconds"), (self.calls, "calls")]
        return ", ".join(f"{value:g} {unit}" for value, unit in parts if value is not None)


def check_fit(method: Method[Any, Any], problem: Problem) -> None:
    """Refuse a method that does not serve the problem's kind."""
    card = method.card
    if problem.kind not in card.kinds:
        raise MismatchError(
            f"{card.id} serves {', '.join(card.kinds)} problems; {problem.name!r} is a {problem.kind} problem."
        )


def run(
    method: Method[Any, Any],
    problem: Problem,
    seed: int = 0,
    *,
    budget: Budget | int | str | None = None,
    target: float | None = None,
    every: int | None = None,
    on_record: Callable[[Trace], bool | None] | None = None,
    picture: bool = False,
) -> Trace:
    """Run one method on one problem with one seed and return its trace.

    Args:
        budget: number of steps, or seconds ("30s"), or calls ("2000calls"); the problem's if not given.
        target: metric value at which to stop; the problem's if not given, `-inf` to never stop.
        every: steps between evaluations; the problem's if not given.
        on_record: called after each evaluation; a true answer ends the run with status `stopped`.
        picture: whether to keep the problem's picture of the last answer, if it makes one.

    Raises:
        MismatchError: the method does not serve this kind of problem.
        ProblemError: the problem cannot be built, its metric is not finite before the first step, or its picture
            fails.

    A method that raises or leaves the finite numbers ends its own run only: see `Trace.status`.
    """
    check_fit(method, problem)
    limit = Budget.parse(budget, problem.budget)
    goal = problem.target if target is None else target
    trace = Trace(target=goal if goal is not None and math.isfinite(goal) else None)
    torch.manual_seed(seed)
    try:
        instance = problem.build(seed)
    except HastenError:
        raise
    except Exception as error:
        raise ProblemError(f"problem {problem.name!r} could not be built: {brief(error)}") from error
    missing = set(method.card.needs) - instance.offers()
    if missing:
        raise MismatchError(f"{method.card.id} needs {', '.join(sorted(missing))}; {problem.name!r} has none.")
    memory = PeakMemory()
    loop = _Loop(method, problem, instance, limit, goal, every or problem.every, trace, on_record)
    try:
        longest = limit.steps or problem.budget
        for rung in [rung for rung in instance.rungs if rung <= (limit.calls or longest)] or (None,):
            instance.horizon = rung or longest
            if loop.chain(seed, ladder=rung is not None):
                break
    except ProblemError:
        raise
    except (DivergedError, FloatingPointError) as error:
        trace.status, trace.message = "diverged", str(error)
    except Exception as error:
        trace.status, trace.message = "error", brief(error)
    trace.peak_bytes = memory.read()
    if picture and trace.answer is not None and trace.status not in ("diverged", "error"):
        trace.picture = _picture(problem, instance, trace.answer)
    return trace


def _picture(problem: Problem, instance: Instance, answer: Any) -> str | None:
    try:
        pixels = instance.picture(answer)
        if pixels is None:
            return None
        from hasten.core.picture import encode

        return encode(pixels)
    except Exception as error:
        raise ProblemError(f"problem {problem.name!r}: its picture failed: {brief(error)}") from error


@dataclass
class _Loop:
    method: Method[Any, Any]
    problem: Problem
    instance: Instance
    limit: Budget
    goal: float | None
    every: int
    trace: Trace
    on_record: Callable[[Trace], bool | None] | None

    def chain(self, seed: int, *, ladder: bool) -> bool:
        """One chain from `init` to its end; returns True when the run as a whole is over.

        On a ladder only the end of a chain is recorded, and costs count from the chain's own start.
        """
        method, instance = self.method, self.instance
        instance.calls.clear()
        instance.bytes_sent = 0
        seconds, steps = 0.0, 0
        max_steps = self.limit.steps if self.limit.steps is not None and not ladder else math.inf
        max_seconds = self.limit.seconds if self.limit.seconds is not None else math.inf
        max_calls, capped = self.limit.calls or 0, self.limit.calls is not None
        calls = instance.calls
        every = math.inf if ladder else self.every
        step, done, clock = method.step, method.done, perf_counter

        start = clock()
        state = method.init(instance, torch.Generator().manual_seed(seed))
        seconds += clock() - start
        if not ladder and self._record(0, seconds, state):
            return True
        due = every
        while True:
            start = clock()
            state = step(instance, state)
            seconds += clock() - start
            steps += 1
            finished = done(state)
            spent = steps >= max_steps or seconds >= max_seconds or (capped and calls.total() >= max_calls)
            if steps >= due or finished or spent:
                due = steps + every
                if self._record(steps, seconds, state):
                    return True
                if spent or finished:
                    self.trace.status = "budget" if spent or ladder else "done"
                    return spent
        return True

    def _record(self, steps: int, seconds: float, state: Any) -> bool:
        value = float(self.instance.metric(state.x))
        self.trace.append(steps, seconds, value, self.instance.calls, self.instance.bytes_sent)
        self.trace.answer = state.x
        if not math.isfinite(value):
            if steps == 0:
                raise ProblemError(
                    f"problem {self.problem.name!r}: its metric ({self.problem.measures}) is {value} at the start, "
                    "before any step; check the model, the data and the loss"
                )
            self.trace.status, self.trace.message = "diverged", f"the metric became {value} at step {steps}"
            return True
        if self.goal is not None and value <= self.goal:
            self.trace.status = "reached"
            return True
        if self.on_record is not None and self.on_record(self.trace):
            self.trace.status = "stopped"
            return True
        return False


def brief(error: BaseException) -> str:
    """The error in one line, with the innermost place in the user's or the method's code."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "site-packages" not in f.filename]
    place = f" ({frames[-1].filename.rsplit('/', 1)[-1]}:{frames[-1].lineno})" if frames else ""
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text[:300]}{place}" if text else f"{type(error).__name__}{place}"
