"""What a race ends in: every run, the comparison with the baseline, and who won."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.core import check, stats, wording
from hasten.core.card import Card
from hasten.core.errors import InputError, unknown
from hasten.core.registry import families, methods
from hasten.core.stats import Comparison
from hasten.core.trace import Trace

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure
    from rich.console import Group
    from rich.table import Table

MEASURES = ("steps", "seconds", "calls", "bytes")
FAILURES = ("diverged", "error", "hung")


@dataclass(frozen=True)
class Scored:
    """One run that counts: a method on a problem with a seed and the hyper-parameters it was tuned to.

    Attributes:
        problem: name of the problem.
        method: full name of the method, e.g. `optim.adopt`.
        seed: the seed, the same for all methods of a pair.
        hyper: hyper-parameters it ran with.
        trace: what came out.
    """

    problem: str
    method: str
    seed: int
    hyper: dict[str, Any]
    trace: Trace

    @property
    def score(self) -> float:
        """Best metric value within the budget; inf for a run that failed, whatever it saw before."""
        return math.inf if self.trace.status in FAILURES else self.trace.best


@dataclass(frozen=True)
class Winner:
    """The method that came first.

    Attributes:
        method: full name.
        name: short name, as users type it.
        problem: the problem its hyper-parameters belong to.
        hyper: tuned hyper-parameters.
        reached, seeds: with how many of how many runs it arrived.
        card: its card; None if no such method is registered here.
    """

    method: str
    name: str
    problem: str
    hyper: dict[str, Any]
    reached: int
    seeds: int
    card: Card | None = None

    @property
    def code(self) -> str:
        """The code that uses it, with its tuned hyper-parameters."""
        if self.card is not None:
            return self.card.code(self.hyper)
        arguments = ", ".join(f"{key}={value!r}" for key, value in self.hyper.items())
        return f"method = hasten.get({self.method.partition(':')[0]!r}).make({arguments})"


class Result:
    """Methods x problems x seeds, run under one budget.

    Ratios are `median cost of the method / median cost of the baseline` on paired seeds; below 1 is cheaper. A run that
    did not arrive costs inf. Where there is no target, or nobody reached it, the best metric within the budget is
    compared instead; there, a run that failed counts as inf.

    Args:
        runs: the scored runs, in any order; runs still missing (an interrupted race) are left out.
        problems: by name, `{"name", "kind", "measures", "target", "summary", "cost"}`; `target` is what counted in this
            race, None for a race to the lowest metric; `cost` is the measure that ranks (`steps` if not given).
        baselines: problem name -> full name of the method that ratios are taken against.
        methods: full names in the order they were given.
        tuned: `(problem, method)` -> chosen hyper-parameters.
        trials: `(problem, method)` -> number of tuning trials spent.
        settings, environment: how the race was set up and where it ran, for the record.

    Raises:
        InputError: a run belongs to no described problem, or was scored twice.
    """

    def __init__(
        self,
        runs: Sequence[Scored],
        *,
        problems: Mapping[str, Mapping[str, Any]],
        baselines: Mapping[str, str],
        methods: Sequence[str],
        tuned: Mapping[tuple[str, str], Mapping[str, Any]] | None = None,
        trials: Mapping[tuple[str, str], int] | None = None,
        settings: Mapping[str, Any] | None = None,
        environment: Mapping[str, Any] | None = None,
    ) -> None:
        self.problems = {name: dict(description) for name, description in problems.items()}
        self.baselines = dict(baselines)
        self.methods = list(dict.fromkeys([*methods, *(run.method for run in runs)]))
        self.tuned = {key: dict(hyper) for key, hyper in (tuned or {}).items()}
        self.trials = dict(trials or {})
        self.settings = dict(settings or {})
        self.environment = dict(environment or {})
        for name, description in self.problems.items():
            check.one_of(f"cost of problem {name!r}", description.get("cost") or "steps", MEASURES)
        self._cells: dict[tuple[str, str], dict[int, Scored]] = {}
        for run in runs:
            if run.problem not in self.problems:
                raise InputError(f"run of {run.method!r} belongs to problem {run.problem!r}, which is not described")
            cell = self._cells.setdefault((run.problem, run.method), {})
            if run.seed in cell:
                raise InputError(f"{run.method!r} on {run.problem!r} was scored twice with seed {run.seed}")
            cell[run.seed] = run

    @property
    def runs(self) -> list[Scored]:
        """All scored runs: problem by problem, methods in their order, seeds increasing."""
        return [run for problem in self.problems for method in self.methods for run in self.cell(problem, method)]

    def cell(self, problem: str, method: str) -> list[Scored]:
        """The runs of one method on one problem, seeds increasing."""
        cell = self._cells.get((problem, method), {})
        return [cell[seed] for seed in sorted(cell)]

    @cached_property
    def labels(self) -> dict[str, str]:
        """Full name -> the name to show: without the family where that is unambiguous."""
        parts = [method.partition(":") for method in self.methods]
        short = [name.rpartition(".")[2] + colon + fixed for name, colon, fixed in parts]
        return {method: name if short.count(name) == 1 else method for method, name in zip(self.methods, short)}

    def measure(self, problem: str) -> str:
        """The cost that ranks methods on a problem."""
        return self.problems[problem].get("cost") or "steps"

    def measures(self, problem: str) -> tuple[str, ...]:
        """The costs worth showing for a problem: bytes only where some were sent."""
        sent = any(any(run.trace.bytes_sent) for method in self.methods for run in self.cell(problem, method))
        return MEASURES if sent or self.measure(problem) == "bytes" else MEASURES[:-1]

    def cost(self, run: Scored, by: str) -> float:
        """Cost of one run to the problem's target; inf if it did not arrive. `best` is its metric instead."""
        return run.score if by == "best" else run.trace.cost_to(self.problems[run.problem].get("target"), by)

    def median(self, problem: str, method: str, by: str) -> float:
        """Median over the seeds of `cost`; nan without runs."""
        costs = [self.cost(run, by) for run in self.cell(problem, method)]
        return float(stats.median(costs)) if costs else math.nan

    def reached(self, problem: str, method: str) -> int:
        """With how many seeds the method arrived."""
        return sum(math.isfinite(self.cost(run, "steps")) for run in self.cell(problem, method))

    def arrived(self, problem: str) -> bool:
        """Whether anyone reached the target; if not, the best metric is compared instead."""
        return any(self.reached(problem, method) for method in self.methods)

    def ranking(self, problem: str, by: str | None = None) -> list[str]:
        """Methods that ran on a problem, first to last: most seeds arrived, then median cost, then median metric."""
        by = by or self.measure(problem)
        ran = [method for method in self.methods if self.cell(problem, method)]
        costs = {m: (self.median(problem, m, by), self.median(problem, m, "best")) for m in ran}
        return sorted(ran, key=lambda m: (-self.reached(problem, m), *costs[m]))

    def compare(self, problem: str, method: str, by: str | None = None) -> Comparison | None:
        """A method against the problem's baseline on their common seeds; None if the baseline did not run.

        Args:
            by: a cost, or `best` for the metric: its ratio, or its difference where it is not always positive. By
                default the measure that ranks, `best` where nobody reached the target.
        """
        by = by or (self.measure(problem) if self.arrived(problem) else "best")
        ours = self._cells.get((problem, method), {})
        theirs = self._cells.get((problem, self.baselines.get(problem, "")), {})
        if not theirs:
            return None
        seeds = sorted(ours.keys() & theirs.keys())
        a = [self.cost(ours[seed], by) for seed in seeds]
        b = [self.cost(theirs[seed], by) for seed in seeds]
        if method == self.baselines.get(problem):
            value = 1.0 if math.isfinite(stats.median(a)) else math.nan
            return Comparison(value, value, value, len(seeds))
        if by == "best" and min([*a, *b], default=1.0) <= 0:
            return stats.bootstrap_difference(a, b)
        return stats.bootstrap_ratio(a, b)

    def frame(self) -> pandas.DataFrame:
        """One row per run.

        Columns: problem, method, seed, status, message, reached, steps, seconds, calls, bytes (costs to the target, inf
        if it was not reached), best, final (metric), peak_bytes, hyper.
        """
        import pandas

        columns = ["problem", "method", "seed", "status", "message", "reached", *MEASURES]
        columns += ["best", "final", "peak_bytes", "hyper"]
        rows = []
        for run in self.runs:
            costs = {by: self.cost(run, by) for by in MEASURES}
            reached = math.isfinite(costs["steps"])
            trace = run.trace
            tail = (trace.best, trace.final, trace.peak_bytes, run.hyper)
            rows.append(
                (run.problem, run.method, run.seed, trace.status, trace.message, reached, *costs.values(), *tail)
            )
        return pandas.DataFrame(rows, columns=columns)

    def summary(self) -> pandas.DataFrame:
        """One row per problem and method, best first.

        Columns: problem, rank (from 1), method, baseline (whether it is), seeds, reached (count); steps, seconds,
        calls, bytes (medians to the target), best (median metric within the budget, failed runs counting as inf);
        `ratio_<column>` with `_low` and `_high` for each of these five; peak_bytes (largest), diverged, error, hung
        (counts), trials, hyper. `ratio_best` is nan where the metric is not always positive.
        """
        import pandas

        rows = []
        for problem in self.problems:
            for rank, method in enumerate(self.ranking(problem), 1):
                cell = self.cell(problem, method)
                row: dict[str, Any] = {"problem": problem, "rank": rank, "method": method}
                row["baseline"] = method == self.baselines.get(problem)
                row["seeds"], row["reached"] = len(cell), self.reached(problem, method)
                row |= {by: self.median(problem, method, by) for by in (*MEASURES, "best")}
                for by in (*MEASURES, "best"):
                    found = self.compare(problem, method, by)
                    known = found is not None and found.neutral == 1.0
                    row[f"ratio_{by}"] = found.value if found and known else math.nan
                    row[f"ratio_{by}_low"] = found.low if found and known else math.nan
                    row[f"ratio_{by}_high"] = found.high if found and known else math.nan
                row["peak_bytes"] = max(run.trace.peak_bytes for run in cell)
                row |= {status: sum(run.trace.status == status for run in cell) for status in FAILURES}
                row["trials"] = self.trials.get((problem, method), 0)
                row["hyper"] = self.hyper(problem, method)
                rows.append(row)
        return pandas.DataFrame(rows)

    def hyper(self, problem: str, method: str) -> dict[str, Any]:
        """The hyper-parameters a method ran with on a problem."""
        cell = self.cell(problem, method)
        return self.tuned.get((problem, method), cell[0].hyper if cell else {})

    def winner(self, problem: str) -> Winner | None:
        """The method that came first on one problem; None if no run came to an end."""
        order = self.ranking(self._named(problem))
        return self._winner(problem, order[0]) if order else None

    def _winner(self, problem: str, method: str) -> Winner | None:
        cell = self.cell(problem, method)
        if not any(math.isfinite(run.score) for run in cell):
            return None
        reached, name = self.reached(problem, method), self.labels[method]
        return Winner(method, name, problem, self.hyper(problem, method), reached, len(cell), card(method))

    @property
    def best(self) -> Winner | None:
        """The method that came first; None if no run came to an end.

        Over several problems: most runs arrived, then least cost (geometric mean, over the problems, of the median
        cost relative to the best one's), then mean rank; its hyper-parameters are those of the first problem it won.
        """
        places: dict[str, list[tuple[int, float, int]]] = {}
        for problem in self.problems:
            order = self.ranking(problem)
            costs = {method: self.median(problem, method, self.measure(problem)) for method in order}
            least = min(costs.values(), default=math.inf)
            for rank, method in enumerate(order):
                excess = math.log(costs[method] / least) if least > 0 and costs[method] < math.inf else math.inf
                places.setdefault(method, []).append((self.reached(problem, method), excess, rank))
        if not places:
            return None

        def key(method: str) -> tuple[float, float, float]:
            reached, excess, rank = zip(*places[method])
            return -sum(reached), sum(excess) / len(excess), sum(rank) / len(rank)

        first = min(places, key=key)
        problems = sorted(self.problems, key=lambda problem: self.ranking(problem)[:1] != [first])
        return next(filter(None, (self._winner(problem, first) for problem in problems)), None)

    def sentence(self, problem: str | None = None) -> str:
        """Which method wins and how sure that is; of the first problem if none is named."""
        return wording.sentence(self, self._named(problem))

    def code(self) -> str:
        """The code that uses the winner, with its tuned hyper-parameters; empty if there is none."""
        return self.best.code if self.best else ""

    def table(self, problem: str | None = None) -> Table | Group:
        """The leaderboard of a problem for a terminal; of all problems, one below the other, if none is named."""
        from rich.console import Group

        from hasten.core.leaderboard import table

        if problem is None and len(self.problems) != 1:
            return Group(*(table(self, name) for name in self.problems))
        return table(self, self._named(problem))

    def plot(self, by: str | None = None, problem: str | None = None) -> Figure:
        """Metric against a cost: the median over the seeds with a band, and the target.

        Args:
            by: `steps`, `seconds`, `calls` or `bytes`; the measure that ranks if not given.
            problem: the first problem if not given.
        """
        from hasten.core.figures import curves

        problem = self._named(problem)
        return curves(self, problem, check.one_of("by", by or self.measure(problem), MEASURES))

    def performance_profile(self, by: str = "steps") -> pandas.DataFrame:
        """Dolan-More profile over all problems that have a target.

        Index `tau`, one column per method (full name): the share of the (problem, seed) pairs that it solved within
        tau times the cost of the best method there. Empty where no problem has a target.
        """
        import pandas

        check.one_of("by", by, MEASURES)
        pairs = [
            (problem, seed)
            for problem, description in self.problems.items()
            if description.get("target") is not None
            for seed in sorted({seed for (p, _), cell in self._cells.items() if p == problem for seed in cell})
        ]
        if not pairs:
            return pandas.DataFrame(columns=self.methods, index=pandas.Index([], name="tau"), dtype=float)
        missing = dict[int, Scored]()
        costs = [
            [
                self.cost(cell[seed], by) if seed in (cell := self._cells.get((problem, method), missing)) else math.inf
                for method in self.methods
            ]
            for problem, seed in pairs
        ]
        tau, share = stats.performance_profile(costs)
        return pandas.DataFrame(share, columns=self.methods, index=pandas.Index(tau, name="tau"))

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file that works offline; returns its path.

        An existing file is replaced only when the whole report is on disk.

        Raises:
            InputError: the path is a folder.
            StoreError: the file cannot be written.
        """
        from hasten.core.report import write

        return write(self, path)

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON (hyper-parameters, settings and environment as far as they are)."""
        return {
            "runs": [asdict(run) for run in self.runs],
            "problems": self.problems,
            "baselines": self.baselines,
            "methods": self.methods,
            "tuned": [[problem, method, hyper] for (problem, method), hyper in self.tuned.items()],
            "trials": [[problem, method, count] for (problem, method), count in self.trials.items()],
            "settings": self.settings,
            "environment": self.environment,
        }

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Inverse of `to_dict`."""
        return cls(
            [Scored(**{**run, "trace": Trace.from_dict(run["trace"])}) for run in data["runs"]],
            problems=data["problems"],
            baselines=data["baselines"],
            methods=data["methods"],
            tuned={(problem, method): hyper for problem, method, hyper in data["tuned"]},
            trials={(problem, method): count for problem, method, count in data["trials"]},
            settings=data["settings"],
            environment=data["environment"],
        )

    def _named(self, problem: str | None) -> str:
        if problem is None and self.problems:
            return next(iter(self.problems))
        if problem not in self.problems:
            raise unknown("problem", str(problem), self.problems, f"This race ran on {', '.join(self.problems)}.")
        return problem


def card(method: str) -> Card | None:
    """Card of a method by its full name, None if it is not registered here (a result may come from elsewhere)."""
    name = method.partition(":")[0]
    family = name.rpartition(".")[0]
    known = methods(family) if family in families() else []
    return next((one for one in known if one.id == name), None)
