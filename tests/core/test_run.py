"""The one loop: what it records, when it ends, what it does with what goes wrong."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import hasten
from hasten.core.errors import InputError, MismatchError, ProblemError
from hasten.core.kinds.minimise import Minimisation
from hasten.core.run import Budget

CARD = hasten.Card(
    name="descent",
    family="test",
    title="Descent",
    authors="Nobody",
    year=2000,
    summary="Gradient descent.",
    cost="one gradient",
    when="never",
    kinds=("minimise",),
    use="pass",
)


@dataclass
class Descent:
    x: torch.Tensor
    steps: int = 0


class GradientDescent(hasten.Method[Minimisation, Descent]):
    card = CARD

    def __init__(self, lr: float = 0.1, fail_at: int = -1, stop_at: int = -1) -> None:
        self.lr, self.fail_at, self.stop_at = lr, fail_at, stop_at

    def init(self, problem: Minimisation, generator: torch.Generator) -> Descent:
        return Descent(problem.x0.clone())

    def step(self, problem: Minimisation, state: Descent) -> Descent:
        state.steps += 1
        if state.steps == self.fail_at:
            raise RuntimeError("out of luck")
        state.x = state.x - self.lr * problem.gradient(state.x)
        return state

    def done(self, state: Descent) -> bool:
        return state.steps == self.stop_at


def square(**options: Any) -> hasten.Problem:
    return hasten.minimisation("square", lambda x: 0.5 * x.square().sum(), torch.ones(4), **options)


def test_the_trace_starts_before_any_step_and_follows_the_closed_form() -> None:
    trace = hasten.run(GradientDescent(lr=0.1), square(budget=10))
    assert trace.status == "budget"
    assert trace.steps == list(range(11))
    assert trace.calls["gradient"] == list(range(11))
    assert trace.metric == pytest.approx([2.0 * 0.81**k for k in range(11)], rel=1e-5)
    assert trace.seconds[0] >= 0
    assert all(a <= b for a, b in zip(trace.seconds, trace.seconds[1:]))


def test_it_ends_at_the_target() -> None:
    trace = hasten.run(GradientDescent(), square(budget=100, target=0.5))
    assert trace.status == "reached"
    # 2 * 0.81^k <= 0.5 first holds at k = 7
    assert trace.steps[-1] == 7 == trace.cost_to()
    assert trace.cost_to(1e-9) == math.inf
    assert trace.cost_to(by="gradient") == 7 == trace.cost_to(by="calls")


def test_evaluations_come_every_so_many_steps_and_at_the_end() -> None:
    assert hasten.run(GradientDescent(), square(budget=10, every=4)).steps == [0, 4, 8, 10]
    assert hasten.run(GradientDescent(), square(budget=10), every=5).steps == [0, 5, 10]


@pytest.mark.parametrize(("budget", "steps"), [("7", 7), (7, 7), ("7 calls", 7), ("7calls", 7), (Budget(steps=3), 3)])
def test_budgets(budget: Any, steps: int) -> None:
    assert hasten.run(GradientDescent(), square(), budget=budget).steps[-1] == steps


def test_a_budget_in_seconds_ends_the_run() -> None:
    trace = hasten.run(GradientDescent(lr=1e-6), square(budget=10**9, every=100), budget="0.05s")
    assert trace.status == "budget"
    assert 0.05 <= trace.seconds[-1] < 1.0


@pytest.mark.parametrize("bad", ["0", "-3", "nan", "inf", "12 apples", "", "2.5", "s", "1e400", -1, 0])
def test_bad_budgets_are_named(bad: Any) -> None:
    with pytest.raises(InputError, match="budget"):
        Budget.parse(bad, 10)


@given(st.integers(1, 10**9))
def test_any_whole_number_of_steps_is_a_budget(steps: int) -> None:
    assert Budget.parse(str(steps), 1) == Budget(steps=steps)


def test_a_diverging_method_is_reported_as_such() -> None:
    trace = hasten.run(GradientDescent(lr=1e6), square(budget=1000))
    assert trace.status == "diverged"
    assert "step" in trace.message


def test_a_raising_method_is_reported_with_the_place() -> None:
    trace = hasten.run(GradientDescent(fail_at=3), square(budget=10))
    assert trace.status == "error"
    assert trace.steps == [0, 1, 2]
    assert trace.message.startswith("RuntimeError: out of luck (test_run.py:")


def test_a_method_may_end_by_itself() -> None:
    trace = hasten.run(GradientDescent(stop_at=4), square(budget=10, every=100))
    assert (trace.status, trace.steps) == ("done", [0, 4])


def test_a_listener_may_stop_it() -> None:
    trace = hasten.run(GradientDescent(), square(budget=10), on_record=lambda trace: trace.steps[-1] >= 2)
    assert (trace.status, trace.steps[-1]) == ("stopped", 2)


def test_a_problem_that_is_not_finite_at_the_start_is_the_problems_fault() -> None:
    broken = hasten.minimisation("broken", lambda x: x.sum() * math.nan, torch.ones(2))
    with pytest.raises(ProblemError, match=r"'broken'.*nan at the start"):
        hasten.run(GradientDescent(), broken)


def test_a_problem_that_cannot_be_built_is_the_problems_fault() -> None:
    def build(seed: int) -> hasten.Instance:
        raise ValueError("no data")

    with pytest.raises(ProblemError, match=r"'broken' could not be built: ValueError: no data"):
        hasten.run(GradientDescent(), hasten.Problem(name="broken", kind="minimise", build=build))


def test_a_mismatch_is_refused() -> None:
    with pytest.raises(MismatchError, match="serves minimise problems"):
        hasten.run(GradientDescent(), hasten.problem("digits-mlp"))


def test_equal_seeds_give_equal_numbers() -> None:
    def once(seed: int) -> list[float]:
        return hasten.run(hasten.get("adamw").make(), hasten.problem("digits-mlp"), seed, budget=20).metric

    assert once(3) == once(3)
    assert once(3) != once(4)


class Chain(hasten.Instance):
    """A ladder: the answer after n steps of an n-step chain has error 1/n."""

    kind = "minimise"
    rungs = (1, 2, 4, 8)
    x0 = torch.zeros(())

    def gradient(self, x: torch.Tensor) -> torch.Tensor:
        self.calls["gradient"] += 1
        return -torch.ones(())

    def metric(self, x: torch.Tensor) -> float:
        return 1.0 / max(float(x), 0.5)


class OnLadder(GradientDescent):
    def init(self, problem: Any, generator: torch.Generator) -> Descent:
        self.stop_at = problem.horizon
        return super().init(problem, generator)


def test_on_a_ladder_each_chain_counts_its_own_costs() -> None:
    problem = hasten.Problem(name="ladder", kind="minimise", build=lambda seed: Chain(), budget=8)
    trace = hasten.run(OnLadder(lr=1.0), problem)
    assert trace.steps == [1, 2, 4, 8] == trace.calls["gradient"]
    assert trace.metric == pytest.approx([1.0, 1 / 2, 1 / 4, 1 / 8])
    assert hasten.run(OnLadder(lr=1.0), problem, budget=4).steps == [1, 2, 4]
    reached = hasten.run(OnLadder(lr=1.0), problem, target=0.3)
    assert (reached.status, reached.cost_to()) == ("reached", 4)
