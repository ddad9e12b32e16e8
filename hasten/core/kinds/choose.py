"""Kind `choose`: picking a few of many items so that an expensive score is smallest."""

from __future__ import annotations

from collections.abc import Callable

from hasten.core import check
from hasten.core.problem import Instance

Choice = tuple[int, ...]


class Choosing(Instance):
    """`size` of `count` items are to be chosen. The answer (`state.x`) is their increasing indices.

    Oracle: `score`, counted as `score`; smaller is better.

    Args:
        score: an expensive number for a choice.
        size: items to choose.
        count: items that there are.
        start: the obvious choice; evenly spread if not given.
        metric: score of the answer on data that the search does not see; `score` itself if not given. Not counted.
    """

    kind = "choose"

    def __init__(
        self,
        score: Callable[[Choice], float],
        size: int,
        count: int,
        start: Choice | None = None,
        metric: Callable[[Choice], float] | None = None,
    ) -> None:
        super().__init__()
        self.count = check.integer("count", count, 2)
        self.size = check.integer("size", size, 1, count - 1)
        self.x0 = even(size, count) if start is None else tuple(sorted(start))
        self._score, self._metric = score, metric or score

    def score(self, x: Choice) -> float:
        """Score of a choice."""
        self.calls["score"] += 1
        return float(self._score(x))

    def metric(self, x: Choice) -> float:
        return float(self._metric(x))


def even(size: int, count: int) -> Choice:
    """`size` of `count` indices, evenly spread, without the ends."""
    return tuple(round((i + 1) * (count + 1) / (size + 1)) - 1 for i in range(size))
