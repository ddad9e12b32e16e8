"""The live leaderboard of a race in the terminal."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median

from rich import live
from rich.console import Console, Group
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from hasten.core.engine import Job, Pulse
from hasten.core.race import Lane, Listener
from hasten.core.trace import Trace

BROKEN = ("diverged", "error", "hung")


@dataclass
class _Row:
    """What is known of one method on one problem so far."""

    tried: int = 0
    now: str = ""
    arrivals: list[float] = field(default_factory=list)
    best: float = math.inf
    scored: int = 0
    broken: int = 0

    def rank(self) -> tuple[float, float, float]:
        """Sort key: most arrivals, soonest, closest."""
        return -len(self.arrivals), median(self.arrivals) if self.arrivals else math.inf, self.best


class Live(Listener):
    """Shows who leads while the race goes on; one line per stage where the output is no terminal."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._rows: dict[tuple[str, str], _Row] = defaultdict(_Row)
        self._cost: Mapping[str, str] = {}
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._live: live.Live | None = None

    def planned(self, lanes: Sequence[Lane], cost: Mapping[str, str]) -> None:
        self._cost = cost
        for lane in lanes:
            self._rows[lane.name] = _Row()
        if self.console.is_terminal:
            self._live = live.Live(get_renderable=self._draw, console=self.console, transient=True)
            self._live.start()

    def stage(self, title: str, total: int, known: int) -> None:
        self._progress.add_task(title, total=total)
        if self._live is None:
            note = f", {known} of them already in the results file" if known else ""
            self.console.print(f"{title}: {total} runs{note}", highlight=False)

    def heard(self, event: Pulse | tuple[Job, Trace], problem: str, method: str) -> None:
        row = self._rows[problem, method]
        if isinstance(event, Pulse):
            row.now = f"step {event.steps}: {event.metric:.4g}"
            return
        job, trace = event
        row.now = ""
        if self._progress.tasks:
            self._progress.advance(self._progress.tasks[-1].id)
        if job.role == "tune":
            row.tried += 1
            return
        row.scored += 1
        row.broken += trace.status in BROKEN
        row.best = min(row.best, trace.best)
        arrival = trace.cost_to(by=self._cost.get(problem, "steps"))
        if math.isfinite(arrival):
            row.arrivals.append(arrival)

    def finished(self) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the live display away."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _draw(self) -> Group:
        tables = []
        for problem in dict.fromkeys(name for name, _ in self._rows):
            table = Table(title=Text(problem, style="bold"), title_justify="left")
            for heading in (
                "method",
                "tried",
                "arrived",
                f"{self._cost.get(problem, 'steps')} to target",
                "best",
                "now",
            ):
                table.add_column(heading, justify="left" if heading in ("method", "now") else "right")
            mine = [(method, row) for (name, method), row in self._rows.items() if name == problem]
            for method, row in sorted(mine, key=lambda item: item[1].rank()):
                arrived = f"{len(row.arrivals)}/{row.scored}" + (f" ({row.broken} failed)" if row.broken else "")
                cost = f"{median(row.arrivals):.4g}" if row.arrivals else ""
                best = f"{row.best:.4g}" if math.isfinite(row.best) else ""
                table.add_row(Text(method), str(row.tried), arrived if row.scored else "", cost, best, row.now)
            tables.append(table)
        return Group(*tables, self._progress)
