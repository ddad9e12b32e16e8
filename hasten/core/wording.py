"""Results in words: numbers as people read them, and the sentence that says who won and how sure that is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from hasten.core.stats import Comparison

if TYPE_CHECKING:
    from hasten.core.result import Result

UNITS = {"steps": "steps", "seconds": "time", "calls": "oracle calls", "bytes": "bytes sent"}
_FEW = 5


def number(value: float) -> str:
    """A metric value or a factor: three significant digits."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "∞" if value > 0 else "-∞"
    text = f"{value:,.0f}" if 1000 <= abs(value) < 1e6 else f"{value:.3g}"
    return text.replace("e-0", "e-").replace("e+0", "e")


def amount(value: float, by: str) -> str:
    """A cost with its unit: `1,240` steps or calls, `3.2 s`, `1.5 MB`; `–` where the target was not reached."""
    if not math.isfinite(value):
        return "–"
    if by == "bytes":
        return size(value)
    if by == "seconds":
        return f"{value:,.0f} s" if value >= 100 else f"{value:.3g} s" if value >= 0.1 else f"{value * 1000:.3g} ms"
    return f"{value:,.0f}" if value == int(value) else f"{value:,.1f}"


def size(value: float) -> str:
    """Bytes in the largest unit that leaves at least 1."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} TB"


def factor(value: float) -> str:
    """A ratio with two decimals, more digits where it is small."""
    if not math.isfinite(value) or value >= 100:
        return number(value)
    return f"{value:.2f}" if value >= 0.1 or value == 0 else f"{value:.2g}".replace("e-0", "e-")


def interval(found: Comparison) -> str:
    """`0.62–0.80`; empty if there is none."""
    if math.isnan(found.low):
        return ""
    show = factor if found.neutral == 1.0 else number
    return f"{show(found.low)}–{show(found.high)}" if found.low >= 0 else f"{show(found.low)} to {show(found.high)}"


def certainty(found: Comparison) -> str:
    """What the interval says about "no difference", in words."""
    if found.seeds < 2:
        return "one seed gives no interval: run more seeds to know how sure this is"
    neutral = "1" if found.neutral == 1.0 else "0"
    if found.decided:
        few = f", though {found.seeds} seeds say little" if found.seeds < _FEW else ""
        return f"the interval excludes {neutral}{few}"
    return f"the interval includes {neutral}: these {found.seeds} seeds do not tell the two apart"


def sentence(result: Result, problem: str) -> str:
    """Which method wins on a problem and how sure that is."""
    order = result.ranking(problem)
    description = result.problems[problem]
    if not order:
        return f"Nothing has run on {problem} yet."
    first = order[0]
    if not math.isfinite(min(run.score for run in result.cell(problem, first))):
        return _all_failed(result, problem, order)
    measures, target = description.get("measures") or "metric", description.get("target")
    goal = f"{measures} {number(target)}" if target is not None else ""
    baseline = result.baselines.get(problem, "")
    rival = baseline if baseline in order and first != baseline else next(iter(order[1:]), "")
    if result.arrived(problem):
        return _on_cost(result, problem, first, rival, goal)
    head = f"No method reached {goal} within the budget. " if goal else ""
    return head + _on_metric(result, problem, first, rival, measures, bool(goal))


def _on_cost(result: Result, problem: str, first: str, rival: str, goal: str) -> str:
    by, names = result.measure(problem), result.labels
    seeds, reached = len(result.cell(problem, first)), result.reached(problem, first)
    cost = result.median(problem, first, by)
    spent = f"{amount(cost, by)} {UNITS[by]}" if by in ("steps", "calls") else amount(cost, by)
    median = f" in {spent}" if math.isfinite(cost) else ""
    share = _of(reached, seeds)
    if not rival:
        return (
            f"{names[first]} reaches {goal}{median} ({_median_of(seeds)}{share}); nothing else ran to compare it with."
        )
    baseline = result.baselines.get(problem)
    other, theirs = names[rival], result.reached(problem, rival)
    of_rival = _of(theirs, len(result.cell(problem, rival)))
    if first == baseline:
        return _baseline_first(result, problem, first, rival, f"reaches {goal}{median} ({share})")
    role = f"the baseline {other}" if rival == baseline else other
    if not theirs:
        return (
            f"{names[first]} reaches {goal}{median} ({share}); {role} reached it with {of_rival}, so there is no ratio."
        )
    found = result.compare(problem, first, by) if rival == baseline else None
    if found is None or not math.isfinite(found.value) or found.value == 0:
        return f"{names[first]} reaches {goal}{median} with {share}, {role} with {of_rival}; that leaves no ratio."
    text = f"{names[first]} reaches {goal} in {factor(found.value)}× the {UNITS[by]} of {other}"
    detail = f"90 % interval {interval(found)}, " if found.seeds > 1 else ""
    text += f" ({detail}{share}{'' if theirs == reached else f', {other} {of_rival}'}); {certainty(found)}."
    if found.value > 1:
        text += " It ranks first because it arrives more often, not because it is faster."
    return text


def _baseline_first(result: Result, problem: str, first: str, rival: str, fact: str) -> str:
    by, names = result.measure(problem), result.labels
    text = f"The baseline {names[first]} stays ahead: it {fact}"
    found = result.compare(problem, rival, by)
    reached = result.reached(problem, rival)
    share = _of(reached, len(result.cell(problem, rival)))
    if found is None or not math.isfinite(found.value):
        return f"{text}; the next best, {names[rival]}, with {share}."
    detail = f"90 % interval {interval(found)}, " if found.seeds > 1 else ""
    needs = f"{names[rival]}, takes {factor(found.value)}× the {UNITS[by]} ({detail}{share})"
    return f"{text}; the next best, {needs}; {certainty(found)}."


def _on_metric(result: Result, problem: str, first: str, rival: str, measures: str, fallback: bool) -> str:
    names, seeds = result.labels, len(result.cell(problem, first))
    best = number(result.median(problem, first, "best"))
    comes = "came closest" if fallback else "gets lowest within the budget"
    text = f"{names[first]} {comes}: best {measures} {best} ({_median_of(seeds)}{seeds} seed{'s' * (seeds > 1)})"
    if not rival:
        return f"{text}; nothing else ran to compare it with."
    baseline = result.baselines.get(problem)
    subject = rival if first == baseline else first
    found = result.compare(problem, subject, "best") if baseline in (first, rival) else None
    theirs = number(result.median(problem, rival, "best"))
    if found is None or not math.isfinite(found.value) or (found.value == 0 and found.neutral == 1.0):
        failed = not math.isfinite(result.median(problem, rival, "best"))
        return f"{text}; {names[rival]} {'failed in most runs' if failed else f'gets to {theirs}'}."
    ratio = f"{factor(found.value)}×" if found.neutral == 1.0 else f"{number(found.value)} against"
    detail = f" (90 % interval {interval(found)})" if found.seeds > 1 else ""
    if first == baseline:
        next_best = f"the next best, {names[rival]}, gets to {theirs}, {ratio} that{detail}"
        return f"{text}, the baseline; {next_best}; {certainty(found)}."
    return f"{text}, {ratio} the baseline {names[rival]}'s {theirs}{detail}; {certainty(found)}."


def _all_failed(result: Result, problem: str, order: list[str]) -> str:
    runs = [run for method in order for run in result.cell(problem, method)]
    kinds = ", ".join(dict.fromkeys(run.trace.status for run in runs))
    why = next((f": {result.labels[run.method]}: {run.trace.message}" for run in runs if run.trace.message), "")
    return f"No winner on {problem}: all {len(runs)} runs failed ({kinds}){why}."


def _of(part: int, seeds: int) -> str:
    return f"{part} of {seeds} seed{'s' * (seeds > 1)}"


def _median_of(seeds: int) -> str:
    return "median of " if seeds > 1 else ""
