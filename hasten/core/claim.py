"""Claims: a paper's statement as an experiment that can fail, and the evidence that was measured for it."""

from __future__ import annotations

import json
import math
import os
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hasten.core import check, fingerprint
from hasten.core.errors import InputError, unknown
from hasten.core.registry import families, get, import_tree, modules

EVIDENCE = Path(__file__).resolve().parent.parent / "evidence"
AGGREGATES: dict[str, Callable[[list[float]], float]] = {
    "median": statistics.median,
    "mean": statistics.fmean,
    "max": max,
    "min": min,
}


@dataclass(frozen=True)
class Outcome:
    """What a measurement of a claim gave.

    Attributes:
        measured: aggregate over the seeds.
        per_seed: the value of each seed, in order.
        verdict: `reproduced` or `not reproduced`.
        seconds: how long it took.
        machine: where it was measured.
        key: hash of the claim, the method and the versions; another key means that the figure is out of date.
    """

    measured: float
    per_seed: tuple[float, ...]
    verdict: str
    seconds: float
    machine: dict[str, str]
    key: str


@dataclass(frozen=True)
class Claim:
    """A paper's statement as a measurement and an expectation, fixed before it is run.

    Attributes:
        name: short name, unique for the method.
        paper_id: number of the paper.
        method: full name of the method.
        baseline: what it is compared with.
        statement: what is expected, in one sentence with its scale.
        quantity: what `run(seed)` returns, in words, e.g. "steps to 0.1, ratio to Adam".
        relation: `<=`, `>=` or `in` (an interval).
        threshold: the number, or the interval's two ends.
        seeds: seeds that count.
        aggregate: `median`, `mean`, `max` or `min` over the seeds.
        note: why the threshold is where it is, or at what scale the paper's own claim lives.
        device: `cpu` or `cuda`.
        function: measures one seed.
    """

    name: str
    paper_id: int | None
    method: str
    baseline: str
    statement: str
    quantity: str
    relation: str
    threshold: float | tuple[float, float]
    function: Callable[[int], float] = field(repr=False)
    seeds: tuple[int, ...] = (0, 1, 2)
    aggregate: str = "median"
    note: str = ""
    device: str = "cpu"

    @property
    def id(self) -> str:
        """`family.method/name`."""
        return f"{self.method}/{self.name}"

    @property
    def expectation(self) -> str:
        """`<= 0.7`, or `in [0.9, 1.1]`."""
        if isinstance(self.threshold, tuple):
            return f"in [{self.threshold[0]:g}, {self.threshold[1]:g}]"
        return f"{self.relation} {self.threshold:g}"

    @property
    def key(self) -> str:
        """Hash of everything that the figure depends on, as far as it can be known."""
        import torch

        parts = sorted({*fingerprint.closure(self.function.__module__), *modules(self.method)})
        version = str(torch.__version__).partition("+")[0]
        return fingerprint.digest(fingerprint.sources(*parts), self.threshold, self.seeds, version)

    def run(self, *seeds: int) -> float:
        """Measure with these seeds (the claim's own if none are given) and aggregate."""
        return AGGREGATES[self.aggregate]([float(self.function(seed)) for seed in seeds or self.seeds])

    def holds(self, measured: float) -> bool:
        """Whether a measured value meets the expectation; nan never does."""
        if isinstance(self.threshold, tuple):
            return self.threshold[0] <= measured <= self.threshold[1]
        return measured <= self.threshold if self.relation == "<=" else measured >= self.threshold

    def measure(self) -> Outcome:
        """Run every seed and judge."""
        start = time.perf_counter()
        values = [float(self.function(seed)) for seed in self.seeds]
        measured = AGGREGATES[self.aggregate](values) if not any(map(math.isnan, values)) else math.nan
        verdict = "reproduced" if self.holds(measured) else "not reproduced"
        seconds = round(time.perf_counter() - start, 1)
        return Outcome(measured, tuple(values), verdict, seconds, fingerprint.machine(), self.key)

    @property
    def evidence(self) -> Outcome | None:
        """The recorded outcome, if there is one."""
        record = _read(_file(self.method)).get(self.name)
        return None if record is None else Outcome(**{**record, "per_seed": tuple(record["per_seed"])})

    @property
    def measured(self) -> float | None:
        """The recorded figure, None if the claim was never run."""
        return self.evidence.measured if self.evidence else None

    @property
    def verdict(self) -> str:
        """`reproduced`, `not reproduced` or `not run`."""
        return self.evidence.verdict if self.evidence else "not run"

    @property
    def current(self) -> bool:
        """Whether the recorded outcome belongs to the present code and versions."""
        return self.evidence is not None and self.evidence.key == self.key


_claims: dict[str, Claim] = {}


def claim(
    *,
    method: str,
    baseline: str,
    statement: str,
    quantity: str,
    threshold: float | tuple[float, float],
    relation: str = "<=",
    paper_id: int | None = None,
    seeds: Iterable[int] = (0, 1, 2),
    aggregate: str = "median",
    note: str = "",
    device: str = "cpu",
) -> Callable[[Callable[[int], float]], Claim]:
    """Decorator: turn a function of the seed into a registered `Claim`; see there for the arguments."""
    check.one_of("relation", relation, ("<=", ">=", "in"))
    check.one_of("aggregate", aggregate, tuple(AGGREGATES))
    if isinstance(threshold, tuple) != (relation == "in"):
        raise InputError(f"threshold of relation {relation!r} must be a number, or two for 'in'; got {threshold!r}")

    def enter(function: Callable[[int], float]) -> Claim:
        made = Claim(
            name=function.__name__.replace("_", "-"),
            paper_id=paper_id,
            method=method,
            baseline=baseline,
            statement=statement,
            quantity=quantity,
            relation=relation,
            threshold=threshold,
            function=function,
            seeds=tuple(seeds),
            aggregate=aggregate,
            note=note,
            device=device,
        )
        known = _claims.get(made.id)
        if known is not None and known.function.__module__ != function.__module__:
            raise InputError(f"claim {made.id!r} is already made in {known.function.__module__}")
        _claims[made.id] = made
        return made

    return enter


def claims(family: str | None = None) -> list[Claim]:
    """All claims, or those of a family (`optim`), a method (`optim.adopt`, `adopt`) or a claim's full id."""
    import_tree("hasten.claims")
    found = sorted(_claims.values(), key=lambda made: made.id)
    if family is None:
        return found
    if family in _claims:
        return [_claims[family]]
    if "/" in family:
        raise unknown("claim", family, _claims, "`hasten claims` lists all.")
    if family in families():
        return [made for made in found if made.method.startswith(family + ".")]
    method = get(family).id
    return [made for made in found if made.method == method]


def write(made: Claim, outcome: Outcome) -> Path:
    """Record an outcome in the evidence folder, beside the method's other claims; whole or not at all."""
    path = _file(made.method)
    records = {**_read(path), made.name: asdict(outcome)}
    known = {entry.name for entry in _claims.values() if entry.method == made.method}
    text = json.dumps({name: records[name] for name in sorted(records) if name in known}, indent=1)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _file(method: str) -> Path:
    family, _, name = method.partition(".")
    return EVIDENCE / family / f"{name}.json"


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
