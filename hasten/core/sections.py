"""What the report shows, as plain data: headline, tiles, leaderboards with interval bars, runs, settings."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from hasten.core import leaderboard, wording
from hasten.core.leaderboard import Row
from hasten.core.result import card
from hasten.core.stats import Comparison

if TYPE_CHECKING:
    from hasten.core.result import Result

RUN_COLUMNS = ("problem", "method", "seed", "status", "steps", "seconds", "calls", "bytes", "best", "memory", "")
_WIDEST = 16.0
_SHORT = 16
_TICKS = (
    (1 / 16, 1 / 4, 1.0, 4.0, 16.0),
    (1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0),
    (0.5, 0.6, 0.8, 1.0, 1.25, 1.6, 2.0),
    (0.8, 0.9, 1.0, 1.1, 1.25),
)
"""Round ratios, coarse to fine; the finest set whose neighbours stay `_APART` percent of the strip apart is shown."""
_APART = 13.0


@dataclass(frozen=True)
class Scale:
    """Where a ratio (log scale) or a difference (linear) lies on a strip, in percent of its width."""

    low: float
    high: float
    neutral: float

    @classmethod
    def of(cls, found: Sequence[Comparison]) -> Scale:
        """The scale on which these comparisons fit; ratios beyond 1/16 and 16 are cut off."""
        neutral = 0.0 if any(one.neutral == 0.0 for one in found) else 1.0
        values = [value for one in found for value in (one.value, one.low, one.high) if math.isfinite(value)]
        if neutral == 0.0:
            reach = 1.1 * max(map(abs, values), default=0.0) or 1.0
            return cls(-reach, reach, neutral)
        values = [value for value in values if value > 0]
        low, high = min([0.8, *values]) / 1.15, max([1.25, *values]) * 1.15
        return cls(max(low, 1 / _WIDEST), min(high, _WIDEST), neutral)

    def at(self, value: float) -> float:
        """Percent from the left, cut off at the ends."""
        value = min(max(value, self.low), self.high)
        if self.neutral == 0.0:
            return round(100 * (value - self.low) / (self.high - self.low), 2)
        return round(100 * math.log(value / self.low) / math.log(self.high / self.low), 2)

    def bar(self, found: Comparison) -> dict[str, Any] | None:
        """Left end and width of an interval; `open` where it goes on beyond the strip."""
        if math.isnan(found.low):
            return None
        left, right = self.at(found.low), self.at(found.high)
        return {"left": left, "width": round(right - left, 2), "open": found.high > self.high}

    def ticks(self) -> list[dict[str, Any]]:
        """Round values inside, with their places."""
        if self.neutral == 0.0:
            values = [(value, wording.number(value)) for value in (self.low / 2, 0.0, self.high / 2)]
        else:
            inside = [[value for value in ticks if self.low <= value <= self.high] for ticks in _TICKS]
            chosen = max((ticks for ticks in inside if self._spread(ticks) >= _APART), key=len)
            values = [(value, f"{value:.4g}×") for value in chosen]
        return [{"at": self.at(value), "text": text} for value, text in values]

    def _spread(self, values: Sequence[float]) -> float:
        places = [self.at(value) for value in values]
        return min((right - left for left, right in pairwise(places)), default=100.0)


def section(result: Result, problem: str, number: int) -> dict[str, Any]:
    """One problem: headline, tiles, a leaderboard per measure."""
    description = result.problems[problem]
    measures = result.measures(problem)
    arrived, target = result.arrived(problem), description.get("target")
    metric = description.get("measures") or "metric"
    head, rest = _split(result.sentence(problem))
    facts = [f"{description['kind']} problem"] if description.get("kind") else []
    facts += [
        f"target {metric} {wording.number(target)}" if target is not None else f"lowest {metric} within the budget"
    ]
    facts += [f"at most {description['budget']}"] if description.get("budget") else []
    baseline = result.labels.get(result.baselines.get(problem, ""), "")
    compared = f"Ratio to {baseline}" if baseline else "No baseline"
    boards = [_board(result, problem, by) for by in (measures if arrived else [result.measure(problem)])]
    of = "median cost to the target" if arrived else f"median best {metric} within the budget"
    return {
        "name": problem,
        "anchor": f"problem-{number}",
        "headline": head,
        "rest": rest,
        "facts": facts,
        "summary": description.get("summary", ""),
        "metric": metric,
        "column": f"best {metric}" if len(metric) <= _SHORT else "best value",
        "heading": f"{metric[:1].upper()}{metric[1:]} on the way",
        "target": target is not None,
        "won": result.winner(problem) is not None,
        "tiles": _tiles(result, problem),
        "measures": measures,
        "chosen": result.measure(problem),
        "boards": boards,
        "note": f"{compared}: {of}, with the 90 % interval over paired seeds; left of the dashed line is better."
        + (" A hollow point lies beyond the scale." if any(r["beyond"] for b in boards for r in b["rows"]) else ""),
    }


def _split(sentence: str) -> tuple[str, str]:
    """What happened, and how sure that is; the second part without the brackets that open it."""
    cut = min((place for place in (sentence.find(" ("), sentence.find("; ")) if place > 0), default=len(sentence))
    head, rest = sentence[:cut], sentence[cut:]
    if rest.startswith(" ("):
        inner, _, after = rest[2:].partition(")")
        rest = f"{inner}{after}"
    rest = rest.removeprefix("; ")
    return re.sub(r"(\de)-(\d)", "\\1\u2011\\2", head.rstrip(".")), rest[:1].upper() + rest[1:]


def _tiles(result: Result, problem: str) -> list[dict[str, str]]:
    """The winner in a few figures."""
    winner, baseline = result.winner(problem), result.baselines.get(problem, "")
    if winner is None:
        return []
    other = result.labels.get(baseline, "")
    tiles = []
    for by in (*(result.measures(problem) if result.arrived(problem) else ()), "best"):
        label = (result.problems[problem].get("measures") or "metric") if by == "best" else wording.UNITS[by]
        ours, theirs = result.median(problem, winner.method, by), result.median(problem, baseline, by)
        show = wording.number if by == "best" else lambda value, by=by: wording.amount(value, by)
        found = None if winner.method == baseline else result.compare(problem, winner.method, by)
        if by == "best" and result.arrived(problem):
            continue
        if found and found.neutral == 1.0 and 0 < found.value < math.inf:
            tiles.append(
                {
                    "label": label,
                    "big": f"{wording.factor(found.value)}×",
                    "small": f"{show(ours)} · {other} {show(theirs)}",
                }
            )
        else:
            small = (
                f"best of the median run{f' · {other} {show(theirs)}' if found else ''}"
                if by == "best"
                else "to the target"
            )
            tiles.append({"label": label, "big": show(ours), "small": small})
    if result.problems[problem].get("target") is not None:
        tiles.append({"label": "target reached", "big": f"{winner.reached}/{winner.seeds}", "small": "seeds"})
    peak = max(run.trace.peak_bytes for run in result.cell(problem, winner.method))
    theirs = max((run.trace.peak_bytes for run in result.cell(problem, baseline)), default=0)
    against = f"{other} {wording.size(theirs)}" if theirs and winner.method != baseline else "above the start"
    return [*tiles, {"label": "peak memory", "big": wording.size(peak), "small": against}]


def _board(result: Result, problem: str, by: str) -> dict[str, Any]:
    rows = leaderboard.rows(result, problem, by)
    scale = Scale.of([row.found for row in rows if row.found and row.compared])
    made = []
    for row in rows:
        paper = card(row.method)
        found = row.found if row.found and (row.compared or row.baseline) else None
        made.append(
            {
                "method": row.method,
                "name": row.name,
                "title": f"{paper.title}. {paper.source}" if paper else row.method,
                "paper": f"https://arxiv.org/abs/{paper.arxiv}" if paper and paper.arxiv else "",
                "failures": row.failures,
                "reached": row.reached,
                "seeds": row.seeds,
                "cost": row.cost,
                "best": row.best,
                "ratio": row.ratio,
                "interval": row.interval,
                "tone": _tone(row),
                "point": None if found is None else scale.at(scale.neutral if row.baseline else found.value),
                "beyond": found is not None and row.compared and not scale.low <= found.value <= scale.high,
                "bar": scale.bar(found) if found and row.compared else None,
                "memory": row.memory,
            }
        )
    return {
        "by": by,
        "compares": "ratio" if scale.neutral == 1.0 else "difference",
        "ticks": scale.ticks(),
        "neutral": scale.at(scale.neutral),
        "rows": made,
    }


def _tone(row: Row) -> str:
    if row.ratio in leaderboard.OUT:
        return "bad"
    if row.baseline or row.found is None or not row.compared or not row.found.decided:
        return "muted" if row.baseline else ""
    return "good" if row.found.high < row.found.neutral else "bad"


def overview(result: Result) -> dict[str, Any]:
    """Several problems at a glance: who is best overall, the ratios side by side, what can be profiled."""
    best = result.best
    table: dict[str, list[dict[str, str]]] = {method: [] for method in result.methods}
    for problem in result.problems:
        found = {row.method: row for row in leaderboard.rows(result, problem, result.measure(problem))}
        for method, cells in table.items():
            row = found.get(method)
            cells.append(
                {"text": row.ratio, "interval": row.interval, "tone": _tone(row)}
                if row
                else {"text": "–", "interval": "", "tone": "muted"}
            )
    order = sorted(result.methods, key=lambda method: best is None or method != best.method)
    targets = [name for name, description in result.problems.items() if description.get("target") is not None]
    measures = list(result.measures(targets[0])) if targets else []
    if best is None:
        headline = "No method came to an end on any problem"
    else:
        reached = sum(result.reached(problem, best.method) for problem in result.problems)
        runs = sum(len(result.cell(problem, best.method)) for problem in result.problems)
        share = f": the target reached in {reached} of {runs} runs" if targets else ""
        headline = f"{best.name} comes first over {len(result.problems)} problems{share}"
    rows = [{"method": method, "name": result.labels[method], "cells": table[method]} for method in order]
    return {"headline": headline, "rows": rows, "measures": tuple(measures)}


def code(result: Result) -> dict[str, str] | None:
    """How to use the winner."""
    best = result.best
    if best is None:
        return None
    paper = best.card
    return {
        "name": best.name,
        "text": best.code,
        "title": f"{paper.title}." if paper else "",
        "source": paper.source if paper else "",
        "when": f"When to prefer it: {paper.when.rstrip('.')}." if paper else "",
    }


def tuned(result: Result) -> list[dict[str, Any]]:
    """Chosen hyper-parameters, one row per problem and method."""
    return [
        {
            "problem": problem,
            "method": result.labels[method],
            "hyper": ", ".join(f"{key}={_value(value)}" for key, value in result.hyper(problem, method).items())
            or "defaults",
            "trials": result.trials.get((problem, method)) or "–",
        }
        for problem in result.problems
        for method in result.methods
        if result.cell(problem, method)
    ]


def runs(result: Result) -> list[tuple[str, ...]]:
    """One row per run, in the order of `RUN_COLUMNS`."""
    return [
        (
            run.problem,
            result.labels[run.method],
            str(run.seed),
            run.trace.status,
            *(wording.amount(result.cost(run, by), by) for by in ("steps", "seconds", "calls", "bytes")),
            wording.number(run.trace.best),
            wording.size(run.trace.peak_bytes),
            run.trace.message,
        )
        for run in result.runs
    ]


def facts(result: Result) -> list[tuple[str, str]]:
    """Settings and environment, for the record."""
    both = [*result.settings.items(), *result.environment.items()]
    return [(str(key), _value(value)) for key, value in both if value not in (None, "", [], {}, ())]


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, dict):
        return ", ".join(f"{key}={_value(one)}" for key, one in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_value, value))
    return str(value)
