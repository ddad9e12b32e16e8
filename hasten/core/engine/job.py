"""A run as a message: everything that a worker needs to execute it, and what comes back."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, Protocol

import cloudpickle

from hasten.core import catalogue, fingerprint, registry
from hasten.core.errors import HastenError
from hasten.core.meter import settle
from hasten.core.problem import Problem
from hasten.core.run import Budget, run
from hasten.core.trace import Trace


@dataclass(frozen=True)
class Reference:
    """Where a worker finds the problem: a ready one's spec, a user's file, or the object itself.

    Attributes:
        how: `name`, `file` or `object`.
        what: the spec, the path, or the pickled object (it only ever travels between processes, never to disk).
    """

    how: str
    what: str | bytes = field(repr=False)

    @classmethod
    def to(cls, problem: str | Path | Problem) -> Reference:
        """Reference to what a user names: `digits-mlp`, `quadratic:cond=1e3`, `mine.py`, or a `Problem`."""
        if isinstance(problem, Problem):
            return cls("object", cloudpickle.dumps(problem))
        if str(problem).endswith(".py") or isinstance(problem, Path):
            return cls("file", str(Path(problem).expanduser().resolve()))
        return cls("name", str(problem))

    def resolve(self) -> Problem:
        """The problem itself."""
        return _resolve(self)

    def key(self, problem: Problem) -> str:
        """Hash of the problem's definition: another key, another problem."""
        modules = [problem.build.__module__] if problem.build.__module__.startswith("hasten.") else []
        parts = [fingerprint.sources(*fingerprint.closure(*modules)), problem.name]
        if self.how == "file":
            parts.append(hashlib.sha256(Path(str(self.what)).read_bytes()).hexdigest())
        elif self.how == "object":
            parts.append(hashlib.sha256(self.what if isinstance(self.what, bytes) else b"").hexdigest())
        else:
            factory = next(e.factory for e in catalogue.problems() if e.name == problem.name.partition(":")[0])
            parts.append(fingerprint.sources(*fingerprint.closure(factory.__module__)))
        return fingerprint.digest(*parts)


@lru_cache(maxsize=32)
def _resolve(reference: Reference) -> Problem:
    if reference.how == "object":
        return cloudpickle.loads(reference.what)  # type: ignore[arg-type]
    if reference.how == "file":
        return catalogue.load_problem(str(reference.what))
    return catalogue.problem(str(reference.what))


@dataclass(frozen=True)
class Job:
    """One run to be executed.

    Attributes:
        key: identity of the result; equal keys are the same run.
        problem: where the worker finds the problem.
        method, hyper: the method's full name and its hyper-parameters.
        seed: of the instance and of the method.
        budget, target: limits of the run.
        role: `tune` or `score`.
        picture: whether the trace brings a picture of the answer with it.
        files: user files that register methods.
        entries: pickled registry entries of methods that live in no importable module (a notebook's, say).
    """

    key: str
    problem: Reference
    method: str
    hyper: Mapping[str, Any]
    seed: int
    budget: Budget
    target: float | None
    role: str
    files: tuple[str, ...] = ()
    entries: bytes = field(default=b"", repr=False)
    picture: bool = False

    def execute(self, on_record: Callable[[Trace], Any] | None = None) -> Trace:
        """Run it here. What the method does wrong is in the trace; what the problem does wrong is raised."""
        for file in self.files:
            _load_once(file)
        for entry in cloudpickle.loads(self.entries) if self.entries else ():
            registry.adopt(entry)
        problem = self.problem.resolve()
        try:
            method = registry.get(self.method).make(**self.hyper)
        except HastenError as error:
            return Trace(status="error", message=str(error), target=self.target)
        settle()
        trace = run(
            method,
            problem,
            self.seed,
            budget=self.budget,
            target=self.target,
            on_record=on_record,
            picture=self.picture,
        )
        trace.answer = None
        return trace


@cache
def _load_once(file: str) -> Any:
    return catalogue.load_module(file)


@dataclass(frozen=True)
class Pulse:
    """A sign of life from a run in flight."""

    job: Job
    steps: int
    metric: float


class Engine(Protocol):
    """Executes jobs; yields pulses and finished traces in whatever order they come."""

    workers: int

    def execute(self, jobs: Iterable[Job]) -> Iterator[Pulse | tuple[Job, Trace]]:
        """Execute all jobs. Raises `ProblemError` if the problem, not a method, is broken."""
        ...

    def close(self) -> None:
        """Release every process."""
        ...


def cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def prepare() -> None:
    """Make a process fit for fair timing: one thread, and torch's lazy imports done before anything is timed."""
    import torch

    torch.set_num_threads(1)
    weight = torch.nn.Parameter(torch.ones(2))
    weight.square().sum().backward()
    torch.optim.AdamW([weight]).step()
