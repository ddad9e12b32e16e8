"""Problems: what is to be reached. A `Problem` is the description, an `Instance` the live thing of one seed."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hasten.core import check
from hasten.core.errors import InputError


class Instance(ABC):
    """A problem built for one seed: the start, the oracles and the metric.

    Oracles add to `calls` when they are called, and whatever goes over a wire adds to `bytes_sent`; methods
    never report their own costs.

    Attributes:
        kind: the interface that this instance offers, e.g. `train` or `minimise`.
        calls: oracle calls so far, by kind of oracle.
        bytes_sent: bytes that went over the (simulated or real) wire so far.
        horizon: the number of steps after which the answer is due, for methods that must know it in advance.
        rungs: where an answer counts only at the end of a chain that is planned in advance (sampling), the
            horizons to try, increasing; the run then restarts the method and its meter at each rung.
    """

    kind: ClassVar[str]
    rungs: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.calls: Counter[str] = Counter()
        self.bytes_sent = 0
        self.horizon: int | None = None

    @abstractmethod
    def metric(self, x: Any) -> float:
        """How far the answer `x` is from the goal; smaller is better. Not counted, not timed."""

    def picture(self, x: Any) -> Any:
        """A picture of the answer `x` for the report; None, as by default, where there is nothing to see.

        uint8 of shape (height, width) or (height, width, 3), at most 262,144 values; not counted, not timed.
        `hasten.core.picture.tiles` makes one of a batch of images.
        """
        return None

    def offers(self) -> frozenset[str]:
        """Oracles beyond the kind's minimum that this instance has, e.g. `hessian`; see `Card.needs`."""
        return frozenset()


@dataclass(frozen=True)
class Problem:
    """What is to be reached.

    Attributes:
        name: what users type.
        kind: the interface of its instances.
        build: makes the live instance of a seed; equal seeds give equal instances.
        measures: what the metric is, in words.
        target: the metric value that counts as arrived; None races for the best value within the budget.
        budget: default number of steps.
        every: steps between two evaluations of the metric.
        cost: the cost that methods are ranked by unless the race says otherwise: `steps`, `calls`, `bytes`.
        summary: one sentence about it.
        baseline: method that ratios are taken against unless the race says otherwise.
        contenders: methods that race by default; empty means every method that fits.
        params: the parameters it was made with, for the record.
    """

    name: str
    kind: str
    build: Callable[[int], Instance]
    measures: str = "objective"
    target: float | None = None
    budget: int = 1000
    every: int = 1
    cost: str = "steps"
    summary: str = ""
    baseline: str | None = None
    contenders: tuple[str, ...] = ()
    params: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.build):
            raise InputError(f"problem {self.name!r}: build must be a function of the seed, got {self.build!r}")
        check.integer(f"problem {self.name!r}: budget", self.budget, 1)
        check.integer(f"problem {self.name!r}: every", self.every, 1)
        if self.target is not None:
            check.real(f"problem {self.name!r}: target", self.target)
