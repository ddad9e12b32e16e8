"""What a race ends in: every run, the comparison with the baseline, and who won."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hasten.core import check
from hasten.core.card import Card
from hasten.core.errors import InputError, unknown
from hasten.core.registry import get
from hasten.core.trace import Trace

if TYPE_CHECKING:
    import pandas
    from plotly.graph_objects import Figure
    from rich.table import Table

    from hasten.core.stats import Comparison

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


@dataclass(frozen=True)
class Winner:
    """The method that came first.

    Attributes:
        method: full name.
        name: short name, as users type it.
        problem: the problem its hyper-parameters belong to.
        hyper: tuned hyper-parameters.
        reached, seeds: with how many of how many runs it arrived.
        card: its card; None if the method is not registered here.
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
        if self.card is None:
            arguments = "".join(f", {key}={value!r}" for key, value in self.hyper.items())
            return f"hasten.get({self.method!r}).make({arguments[2:]})"
        return self.card.code(self.hyper)


class Result:
    """Methods x problems x seeds, run under one budget.

    Ratios are `median cost of the method / median cost of the baseline` on paired seeds; below 1 is cheaper. A run that
    did not arrive costs inf.

    Args:
        runs: the scored runs, in any order; runs still missing (an interrupted race) are left out.
        problems: by name, `{"name", "kind", "measures", "target", "summary"}`; `target` is what counted in this race,
            None for a race to the lowest metric.
        baselines: problem name -> full name of the method that ratios are taken against.
        methods: full names in the order they were given.
        tuned: `(problem, method)` -> chosen hyper-parameters.
        trials: `(problem, method)` -> number of tuning trials spent.
        settings: how the race was set up, for the record; `settings["by"]` is the measure that ranks (`steps` if not
            given, `calls` for sampling).
        environment: where it ran, for the record.
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
        self.runs = list(runs)
        self.problems = {name: dict(description) for name, description in problems.items()}
        self.baselines = dict(baselines)
        self.methods = list(methods)
        self.tuned = {key: dict(hyper) for key, hyper in (tuned or {}).items()}
        self.trials = dict(trials or {})
        self.settings = dict(settings or {})
        self.environment = dict(environment or {})
        for run in self.runs:
            if run.problem not in self.problems:
                raise InputError(f"run of {run.method!r} belongs to problem {run.problem!r}, which is not described")
            if run.method not in self.methods:
                self.methods.append(run.method)
        if "by" in self.settings:
            check.one_of("settings['by']", self.settings["by"], MEASURES)

    def frame(self) -> pandas.DataFrame:
        """One row per run.

        Columns: problem, method, seed, status, message, reached, steps, seconds, calls, bytes (costs to the target, inf
        if it was not reached), best, final (metric), peak_bytes, hyper.
        """
        raise NotImplementedError

    def summary(self) -> pandas.DataFrame:
        """One row per problem and method, best first.

        Columns: problem, rank, method, seeds, reached; steps, seconds, calls, bytes (medians to the target);
        `ratio_<measure>` with `_low` and `_high`; best (median metric), peak_bytes, diverged, error, hung (counts),
        trials, hyper.
        """
        raise NotImplementedError

    @property
    def best(self) -> Winner | None:
        """The method that came first over all problems: most runs arrived, then least cost; None if nothing ran."""
        raise NotImplementedError

    def winner(self, problem: str) -> Winner | None:
        """The method that came first on one problem; None if every run failed."""
        raise NotImplementedError

    def sentence(self, problem: str | None = None) -> str:
        """Which method wins and how sure that is; of the only problem if none is named."""
        raise NotImplementedError

    def code(self) -> str:
        """The code that uses the winner, with its tuned hyper-parameters."""
        return self.best.code if self.best else ""

    def table(self, problem: str | None = None) -> Table:
        """The leaderboard for a terminal; of all problems if none is named."""
        raise NotImplementedError

    def plot(self, by: str | None = None, problem: str | None = None) -> Figure:
        """Metric against a cost: the median over seeds with a band, and the target."""
        raise NotImplementedError

    def performance_profile(self, by: str = "steps") -> pandas.DataFrame:
        """Dolan-More profile: index tau, one column per method, the share of runs within tau times the best."""
        raise NotImplementedError

    def report(self, path: str | Path) -> Path:
        """Write one self-contained HTML file (works offline); an existing file is replaced only when all is written."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        raise NotImplementedError

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Result:
        """Inverse of `to_dict`."""
        raise NotImplementedError
