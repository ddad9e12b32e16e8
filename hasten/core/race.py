"""The race: methods on problems over seeds, each method tuned with the same number of trials."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cloudpickle
import torch

from hasten.core import check, fingerprint, registry, tuning
from hasten.core.card import Card
from hasten.core.catalogue import literal
from hasten.core.engine import Engine, Job, Pulse, Reference, open_engine
from hasten.core.errors import HastenError, InputError, MismatchError, ProblemError
from hasten.core.problem import Problem
from hasten.core.result import Result, Scored
from hasten.core.run import Budget, brief
from hasten.core.store import DEFAULT, Store
from hasten.core.trace import Trace

DEFAULT_PROBLEM = "digits-mlp"


@dataclass(frozen=True)
class Contender:
    """A method in a race, with the hyper-parameters that the user fixed."""

    card: Card
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """`optim.adopt`, or `optim.adopt:lr=0.001` with fixed hyper-parameters."""
        shown = ",".join(f"{key}={value}" for key, value in self.fixed.items())
        return f"{self.card.id}:{shown}" if shown else self.card.id

    @classmethod
    def parse(cls, text: str) -> Contender:
        """From `adopt`, `optim.adopt` or `adopt:lr=1e-3,eps=1e-8`."""
        name, _, tail = text.partition(":")
        fixed = {}
        for item in filter(None, tail.split(",")):
            key, equals, value = item.partition("=")
            if not equals:
                raise InputError(f"hyper-parameter {item!r} of {name!r} must look like key=value, as in adopt:lr=1e-3")
            fixed[key.strip()] = literal(value.strip())
        contender = cls(registry.get(name), fixed)
        try:
            contender.card.make(**fixed)
        except HastenError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"{contender.card.id} cannot be made with {tail or 'its defaults'}: {error}") from error
        return contender


@dataclass
class Lane:
    """One method on one problem: what it will run, and what came of it."""

    problem: Problem
    reference: Reference
    key: str
    contender: Contender
    sources: str
    hypers: list[dict[str, Any]]
    hyper: dict[str, Any] = field(default_factory=dict)
    scores: list[tuple[int, float]] = field(default_factory=list)
    runs: dict[int, Trace] = field(default_factory=dict)

    @property
    def name(self) -> tuple[str, str]:
        """Problem and method."""
        return self.problem.name, self.contender.label


class Listener:
    """Is told how a race goes on. The default does nothing."""

    def planned(self, lanes: Sequence[Lane], cost: Mapping[str, str]) -> None:
        """The race is about to begin."""

    def stage(self, title: str, total: int, known: int) -> None:
        """`total` runs follow, of which `known` are in the store already."""

    def heard(self, event: Pulse | tuple[Job, Trace], problem: str, method: str) -> None:
        """A run gave a sign of life, or ended."""

    def finished(self) -> None:
        """Nothing follows."""


@dataclass(frozen=True)
class Settings:
    """Everything that shapes the numbers of a race, apart from problems and methods."""

    target: float | None = None
    budget: Budget | None = None
    seeds: int = 5
    trials: int = 8
    seed: int = 0
    cost: str | None = None


def race(
    problem: str | Path | Problem | Sequence[str | Path | Problem] = DEFAULT_PROBLEM,
    methods: str | Iterable[str] = (),
    *,
    target: float | None = None,
    budget: int | str | Budget | None = None,
    seeds: int = 5,
    trials: int = 8,
    baseline: str | None = None,
    cost: str | None = None,
    engine: str | Engine = "local",
    workers: int | None = None,
    patience: float = 120.0,
    store: str | Path | None = None,
    seed: int = 0,
    listener: Listener | None = None,
) -> Result:
    """Race methods on your problem: equal tuning, paired seeds, measured costs.

    Args:
        problem: a ready problem (`"digits-mlp"`, `"quadratic:cond=1e4"`), a file with `problem()`, a `Problem`, or
            several of these.
        methods: names, with hyper-parameters fixed if you like (`"adopt:lr=1e-3"`); the problem's own field, or all
            methods that fit, if empty.
        target: metric value that counts as arrived; the problem's if not given.
        budget: steps (500), method seconds ("30s") or oracle calls ("2000calls") per run; the problem's if not given.
        seeds: scored runs per method; the same seeds for every method.
        trials: tuning trials per method, the defaults among them; 1 races the defaults.
        baseline: method that ratios are taken against; the problem's, or the first, if not given.
        cost: what methods are ranked by: `steps`, `seconds`, `calls`, `bytes`; the problem's if not given.
        engine: `"local"`, `"inline"`, `"ray"`, or an engine.
        workers: parallel runs; one per core if not given.
        patience: seconds without a sign of life after which a run counts as hung.
        store: results file; `.hasten/results.db` if not given. What it holds already is not run again.
        seed: shifts all scored and tuning seeds.
        listener: is told how the race goes on.

    Returns:
        The `Result`: `.frame()`, `.plot()`, `.report(path)`, `.best`, `.table()`.

    Raises:
        UnknownNameError, InputError, MismatchError: something is wrong with the arguments; nothing was run.
        ProblemError: the problem is broken. StoreError: the results file is. Earlier results are intact in any case.
    """
    settings = Settings(
        target=None if target is None else check.real("target", target),
        budget=None if budget is None else Budget.parse(budget, 1),
        seeds=check.integer("seeds", seeds, 1),
        trials=check.integer("trials", trials, 1),
        seed=check.integer("seed", seed, 0),
        cost=None if cost is None else check.one_of("cost", cost, ("steps", "seconds", "calls", "bytes")),
    )
    sources = [problem] if isinstance(problem, (str, Path, Problem)) else list(problem)
    if not sources:
        raise InputError("problem: the list is empty; name at least one problem")
    names = [methods] if isinstance(methods, str) else list(methods)
    plan = Plan(settings, sources, names, baseline)
    with Store(DEFAULT if store is None else store) as results:
        open_here = isinstance(engine, str)
        place = open_engine(engine, workers, patience) if isinstance(engine, str) else engine
        try:
            return plan.execute(place, results, listener or Listener())
        finally:
            if open_here:
                place.close()


class Plan:
    """A race that was checked at the door and can be executed."""

    def __init__(
        self,
        settings: Settings,
        sources: Sequence[str | Path | Problem],
        methods: Sequence[str],
        baseline: str | None,
    ) -> None:
        self.settings = settings
        self.files = tuple(str(Path(s).resolve()) for s in sources if not isinstance(s, Problem) and _is_file(s))
        references = [Reference.to(source) for source in sources]
        problems = [reference.resolve() for reference in references]
        if len({problem.name for problem in problems}) < len(problems):
            raise InputError(f"problems must have different names, got {', '.join(p.name for p in problems)}")
        self.baselines: dict[str, str] = {}
        self.lanes: list[Lane] = []
        for reference, problem in zip(references, problems):
            contenders, base = self._field(problem, methods, baseline)
            self.baselines[problem.name] = base
            key = reference.key(problem)
            for contender in contenders:
                hypers = tuning.candidates(contender.card, settings.trials, contender.fixed, settings.seed)
                sources = fingerprint.sources(*registry.modules(contender.card.id))
                self.lanes.append(Lane(problem, reference, key, contender, sources, hypers))
        self.entries = self._local_entries()

    def _field(self, problem: Problem, methods: Sequence[str], baseline: str | None) -> tuple[list[Contender], str]:
        """Who races on this problem, baseline first if it was not named, and who the baseline is."""
        offers = _offers(problem, self.settings.seed)
        fitting = [card for card in registry.methods() if card.fits(problem.kind, offers)]
        if methods:
            contenders = [Contender.parse(name) for name in methods]
        elif problem.contenders:
            contenders = [Contender.parse(name) for name in problem.contenders]
        else:
            contenders = [Contender(card) for card in fitting]
        for contender in contenders:
            if not contender.card.fits(problem.kind, offers):
                raise MismatchError(
                    f"{contender.card.id} does not fit {problem.name!r} (a {problem.kind} problem). "
                    f"Fitting methods: {', '.join(card.name for card in fitting) or 'none'}."
                )
        named = baseline or problem.baseline
        if named is not None:
            reference = Contender.parse(named)
            if reference.label not in [contender.label for contender in contenders]:
                if not reference.card.fits(problem.kind, offers):
                    raise MismatchError(f"baseline {named!r} does not fit {problem.name!r} (a {problem.kind} problem).")
                contenders.insert(0, reference)
            base = reference.label
        elif contenders:
            base = contenders[0].label
        else:
            raise MismatchError(f"no method fits {problem.name!r} (a {problem.kind} problem); write your own")
        labels = [contender.label for contender in contenders]
        if len(set(labels)) < len(labels):
            raise InputError(f"each method may be named once, got {', '.join(labels)}")
        return contenders, base

    def _local_entries(self) -> bytes:
        """Registry entries that a worker could not import by itself."""
        entries = [registry.entry(lane.contender.card.id) for lane in self.lanes]
        local = [entry for entry in entries if not entry.module.startswith(("hasten.", "hasten_user_", "torch."))]
        return cloudpickle.dumps(local) if local else b""

    def execute(self, engine: Engine, store: Store, listener: Listener) -> Result:
        """Tune, then score. What the store holds already is not run again."""
        settings, machine = self.settings, fingerprint.machine()
        listener.planned(self.lanes, {lane.problem.name: self.cost(lane) for lane in self.lanes})

        def stage(title: str, jobs: list[tuple[Lane, Job]]) -> dict[str, Trace]:
            done = store.get(job.key for _, job in jobs)
            listener.stage(title, len(jobs), len(done))
            lanes = {job.key: lane for lane, job in jobs}
            for lane, job in jobs:
                if job.key in done:
                    listener.heard((job, done[job.key]), *lane.name)
            todo = [job for _, job in jobs if job.key not in done]
            for event in engine.execute(todo) if todo else ():
                job = event.job if isinstance(event, Pulse) else event[0]
                lane = lanes[job.key]
                if not isinstance(event, Pulse):
                    store.put(job, lane.problem.name, event[1], machine)
                    done[job.key] = event[1]
                listener.heard(event, *lane.name)
            return done

        self._tune(stage)
        scored = []
        for lane in self.lanes:
            for index in range(settings.seeds):
                scored.append((lane, self.job(lane, lane.hyper, settings.seed + index, self.budget(lane), "score")))
        traces = stage("racing", scored)
        listener.finished()
        runs = [
            Scored(lane.problem.name, lane.contender.label, job.seed, dict(lane.hyper), traces[job.key])
            for lane, job in scored
        ]
        return self._result(runs, engine, machine)

    def _tune(self, stage: Callable[[str, list[tuple[Lane, Job]]], dict[str, Trace]]) -> None:
        seed = self.settings.seed + tuning.SEED_OFFSET
        alive = {lane.name: list(range(len(lane.hypers))) for lane in self.lanes}
        for lane in self.lanes:
            lane.hyper = lane.hypers[0]
        tuned = [lane for lane in self.lanes if len(lane.hypers) > 1]
        for title, short in (("tuning, first rung", True), ("tuning", False)):
            jobs = {}
            for lane in tuned:
                budget = tuning.first_rung(self.budget(lane), len(lane.hypers)) if short else self.budget(lane)
                if budget is not None:
                    for index in alive[lane.name]:
                        jobs[lane.name, index] = (lane, self.job(lane, lane.hypers[index], seed, budget, "tune"))
            if not jobs:
                continue
            traces = stage(title, list(jobs.values()))
            for lane in tuned:
                results = {i: traces[jobs[lane.name, i][1].key] for i in alive[lane.name] if (lane.name, i) in jobs}
                if results:
                    order = sorted(results, key=lambda i: (tuning.score(results[i], self.cost(lane)), i))
                    alive[lane.name] = order[: tuning.survivors(len(order))] if short else order
                    lane.hyper = lane.hypers[order[0]]

    def budget(self, lane: Lane) -> Budget:
        """What one run of this lane may spend."""
        return self.settings.budget or Budget(steps=lane.problem.budget)

    def cost(self, lane: Lane) -> str:
        """What this lane is ranked by."""
        return self.settings.cost or lane.problem.cost

    def job(self, lane: Lane, hyper: Mapping[str, Any], seed: int, budget: Budget, role: str) -> Job:
        """One run of this lane as a message."""
        card = lane.contender.card
        target = lane.problem.target if self.settings.target is None else self.settings.target
        version = str(torch.__version__)
        limits = [budget.steps, budget.seconds, budget.calls, target, lane.problem.every]
        key = fingerprint.digest(lane.key, card.id, lane.sources, dict(hyper), seed, limits, version)
        own = (self.files, self.entries, role == "score" and seed == self.settings.seed)
        return Job(key, lane.reference, card.id, dict(hyper), seed, budget, target, role, *own)

    def _result(self, runs: list[Scored], engine: Engine, machine: dict[str, str]) -> Result:
        settings = self.settings
        problems = {}
        for lane in self.lanes:
            problem = lane.problem
            target = problem.target if settings.target is None else settings.target
            problems[problem.name] = {
                "name": problem.name,
                "kind": problem.kind,
                "measures": problem.measures,
                "target": target if target is not None and math.isfinite(target) else None,
                "summary": problem.summary,
                "cost": self.cost(lane),
                "budget": self.budget(lane).describe(),
            }
        return Result(
            runs,
            problems=problems,
            baselines=self.baselines,
            methods=list(dict.fromkeys(lane.contender.label for lane in self.lanes)),
            tuned={lane.name: dict(lane.hyper) for lane in self.lanes},
            trials={lane.name: len(lane.hypers) if len(lane.hypers) > 1 else 0 for lane in self.lanes},
            settings={
                "seeds": settings.seeds,
                "tuning trials": settings.trials,
                "first seed": settings.seed,
                "workers": engine.workers,
            },
            environment=machine,
        )


def _offers(problem: Problem, seed: int) -> frozenset[str]:
    """What the problem's instances offer; building one here also finds a broken problem before anything is run."""
    with torch.random.fork_rng(devices=[]):
        try:
            return problem.build(seed).offers()
        except HastenError:
            raise
        except Exception as error:
            raise ProblemError(f"problem {problem.name!r} could not be built: {brief(error)}") from error


def _is_file(source: str | Path) -> bool:
    return isinstance(source, Path) or source.endswith(".py")
