"""The leaderboard of a race: its rows as text, and the table for a terminal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hasten.core import wording
from hasten.core.result import FAILURES
from hasten.core.stats import Comparison

if TYPE_CHECKING:
    from rich.table import Table

    from hasten.core.result import Result


OUT = ("not reached", "failed")
"""What stands in place of a ratio where the median run did not arrive."""


@dataclass(frozen=True)
class Row:
    """One method on one problem, by one measure, as a reader sees it.

    Attributes:
        method, name: full and short name.
        baseline: whether ratios are taken against it.
        reached, seeds: with how many seeds it arrived.
        cost: median cost to the target.
        best: median of the best metric within the budget.
        memory: most bytes any of its runs held.
        found: the comparison with the baseline, None if that did not run.
        ratio, interval: the comparison in words.
        failures: what went wrong how often, e.g. `2 diverged`.
    """

    method: str
    name: str
    baseline: bool
    reached: int
    seeds: int
    cost: str
    best: str
    memory: str
    found: Comparison | None
    ratio: str
    interval: str
    failures: tuple[str, ...]

    @property
    def compared(self) -> bool:
        """Whether there is a ratio (or difference) to the baseline to show."""
        return not self.baseline and self.ratio not in ("–", *OUT)


def rows(result: Result, problem: str, by: str) -> list[Row]:
    """The leaderboard of a problem, ranked by a cost; the comparison is by metric where nobody reached the target."""
    compared = by if result.arrived(problem) else "best"
    made = []
    for method in result.ranking(problem, by):
        cell = result.cell(problem, method)
        counts = {status: sum(run.trace.status == status for run in cell) for status in FAILURES}
        found = result.compare(problem, method, compared)
        baseline = method == result.baselines.get(problem)
        ratio, span = ("baseline", "") if baseline else _ratio(result, problem, method, compared, found)
        best = result.median(problem, method, "best")
        made.append(
            Row(
                method=method,
                name=result.labels[method],
                baseline=baseline,
                reached=result.reached(problem, method),
                seeds=len(cell),
                cost=wording.amount(result.median(problem, method, by), by),
                best=wording.number(best) if math.isfinite(best) else "–",
                memory=wording.size(max(run.trace.peak_bytes for run in cell)),
                found=found,
                ratio=ratio,
                interval=span,
                failures=tuple(f"{count} {status}" for status, count in counts.items() if count),
            )
        )
    return made


def _ratio(result: Result, problem: str, method: str, by: str, found: Comparison | None) -> tuple[str, str]:
    if not math.isfinite(result.median(problem, method, by)):
        return OUT[by == "best"], ""
    if found is None or not math.isfinite(found.value) or (found.value == 0 and found.neutral == 1.0):
        return "–", ""
    if found.neutral == 0.0:
        return f"{found.value:+.3g}", wording.interval(found)
    return f"{wording.factor(found.value)}×", wording.interval(found)


def table(result: Result, problem: str) -> Table:
    """The leaderboard of a problem for a terminal."""
    from rich.table import Table
    from rich.text import Text

    by = result.measure(problem)
    arrived = result.arrived(problem)
    description = result.problems[problem]
    target = description.get("target")
    goal = f" to {description.get('measures', 'metric')} {wording.number(target)}" if target is not None else ""
    title = Text(f"{problem}: {wording.UNITS[by]}{goal}")
    made = Table(title=title, title_justify="left", title_style="bold", box=None, collapse_padding=True, pad_edge=False)
    made.add_column("method", no_wrap=True)
    for header in ("reached", by if arrived else "best", "ratio", "90 %", "memory"):
        made.add_column(header, justify="right", no_wrap=True)
    lines = rows(result, problem, by)
    failed = any(row.failures for row in lines)
    if failed:
        made.add_column("failed")
    for place, row in enumerate(lines):
        cheaper = row.compared and row.found and row.found.high < row.found.neutral
        made.add_row(
            Text(row.name),
            f"{row.reached}/{row.seeds}",
            row.cost if arrived else row.best,
            Text(row.ratio, "green" if cheaper else ""),
            row.interval,
            row.memory,
            *([Text(", ".join(row.failures), "red")] if failed else []),
            style="bold" if place == 0 else "",
        )
    return made
