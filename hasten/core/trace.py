"""The record of a run: the metric against every cost, in order."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Trace:
    """The metric against every cost, one entry per evaluation, the first one before any step.

    Attributes:
        status: `reached`, `budget` (spent), `done` (the method ended by itself), `diverged`, `error`, `hung` or
            `stopped` (on request).
        message: why, where the status does not say it all.
        steps, seconds, metric: the columns; seconds count the method only, not the evaluations.
        calls: oracle calls by kind, one column each.
        bytes_sent: bytes over the wire.
        answer: the method's last answer, in the form that the problem's metric takes; it stays in the process of the
            run and is not part of the record.
        picture: a picture of the last answer, PNG in base64; it is kept beside the record, not in it.
        peak_bytes: most memory held above what was held before the run.
        target: the value that counted as arrived, if any.
    """

    status: str = "budget"
    message: str = ""
    target: float | None = None
    peak_bytes: int = 0
    steps: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    metric: list[float] = field(default_factory=list)
    bytes_sent: list[int] = field(default_factory=list)
    calls: dict[str, list[int]] = field(default_factory=dict)
    answer: Any = field(default=None, compare=False, repr=False)
    picture: str | None = field(default=None, compare=False, repr=False)

    def append(self, steps: int, seconds: float, metric: float, calls: Mapping[str, int], bytes_sent: int) -> None:
        """Add one evaluation."""
        for kind in calls.keys() - self.calls.keys():
            self.calls[kind] = [0] * len(self.steps)
        for kind, column in self.calls.items():
            column.append(calls.get(kind, 0))
        self.steps.append(steps)
        self.seconds.append(seconds)
        self.metric.append(metric)
        self.bytes_sent.append(bytes_sent)

    def column(self, by: str) -> list[Any]:
        """A cost column: `steps`, `seconds`, `bytes`, `calls` (all oracles together), or one oracle's name."""
        if by == "calls":
            return [sum(row) for row in zip(*self.calls.values())] if self.calls else [0] * len(self.steps)
        columns = {"steps": self.steps, "seconds": self.seconds, "bytes": self.bytes_sent}
        if by in columns:
            return columns[by]
        return self.calls.get(by, [0] * len(self.steps))

    def cost_to(self, target: float | None = None, by: str = "steps") -> float:
        """Cost of the first evaluation at or below `target` (the trace's own if not given); inf if none was."""
        goal = self.target if target is None else target
        if goal is None:
            return math.inf
        for cost, value in zip(self.column(by), self.metric):
            if value <= goal:
                return float(cost)
        return math.inf

    @property
    def best(self) -> float:
        """Smallest finite metric value; inf if there is none."""
        return min((value for value in self.metric if math.isfinite(value)), default=math.inf)

    @property
    def final(self) -> float:
        """Metric at the last evaluation; nan for an empty trace."""
        return self.metric[-1] if self.metric else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Plain data, ready for JSON."""
        return {name: value for name, value in vars(self).items() if name not in ("answer", "picture")}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trace:
        """Inverse of `to_dict`."""
        return cls(**data)
