"""Engine `ray`: runs spread over a Ray cluster, or over a Ray on this machine."""

from __future__ import annotations

import os
import socket
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import Any

from hasten.core import check
from hasten.core.engine.job import Job, Pulse, prepare
from hasten.core.errors import EngineError, HastenError, ProblemError
from hasten.core.trace import Trace

REACH_SECONDS = 5.0
POLL_SECONDS = 0.5
START_SECONDS = 180.0


class Remote:
    """The actor: executes one run at a time and answers, meanwhile, how far it is."""

    def __init__(self) -> None:
        prepare()
        self._lock = threading.Lock()
        self._news = (0, 0, float("nan"))

    def execute(self, job: Job) -> tuple[str, Any]:
        """The finished trace, or what is wrong with the problem."""

        def note(trace: Trace) -> None:
            with self._lock:
                self._news = (self._news[0] + 1, trace.steps[-1], trace.metric[-1])

        try:
            return "result", job.execute(note)
        except HastenError as error:
            return "broken", str(error)

    def news(self) -> tuple[int, int, float]:
        """A counter of evaluations so far, and the last one's step and metric."""
        with self._lock:
            return self._news


class RayEngine:
    """Runs jobs on Ray actors of one core each.

    Args:
        name: `ray` (a new local Ray, or the cluster in `RAY_ADDRESS`), `ray://host:port` or `ray:host:port`.
        workers: number of actors; the cluster's cores if not given.
        patience: seconds without a sign of life after which a run counts as hung.

    Raises:
        EngineError: Ray is not installed, or the cluster cannot be reached.
    """

    def __init__(self, name: str = "ray", workers: int | None = None, patience: float = 120.0) -> None:
        try:
            import ray
        except ImportError:
            raise EngineError("engine 'ray' needs Ray: pip install 'hasten[ray]'") from None
        self._ray: Any = ray
        self.patience = float(check.positive("patience", patience))
        address = _address(name)
        self._ours = not ray.is_initialized()
        if self._ours:
            if address is not None:
                _reach(address)
            try:
                ray.init(address=address, log_to_driver=False, include_dashboard=False if address is None else None)
            except (ConnectionError, RuntimeError, ValueError, OSError) as error:
                raise EngineError(f"the Ray cluster at {address or 'this machine'} cannot be used: {error}") from error
        available = int(ray.cluster_resources().get("CPU", 1))
        self.workers = check.integer("workers", available if workers is None else workers, 1)
        self._actor = self._ray.remote(num_cpus=1, max_concurrency=2)(Remote)
        self._pool: list[Any] = []

    def execute(self, jobs: Iterable[Job]) -> Iterator[Pulse | tuple[Job, Trace]]:
        ray, waiting = self._ray, deque(jobs)
        flying: dict[Any, _Flight] = {}
        idle = deque(self._pool)
        while waiting or flying:
            while waiting and (idle or len(self._pool) < self.workers):
                if not idle:
                    self._pool.append(self._actor.remote())
                    idle.append(self._pool[-1])
                actor, job = idle.popleft(), waiting.popleft()
                flying[actor.execute.remote(job)] = _Flight(job, actor)
            done, _ = ray.wait(list(flying), timeout=POLL_SECONDS)
            for reference in done:
                flight = flying.pop(reference)
                yield self._land(reference, flight, idle)
            for reference, flight in list(flying.items()):
                pulse = self._ask(flight)
                if pulse is not None:
                    yield pulse
                elif monotonic() - flight.heard > (self.patience if flight.alive else START_SECONDS):
                    del flying[reference]
                    self._kill(flight.actor)
                    message = f"no sign of life for {self.patience:g} s"
                    yield flight.job, Trace(status="hung", message=message, target=flight.job.target)

    def close(self) -> None:
        while self._pool:
            self._kill(self._pool[-1])
        if self._ours:
            self._ray.shutdown()

    def _land(self, reference: Any, flight: _Flight, idle: deque[Any]) -> tuple[Job, Trace]:
        try:
            kind, content = self._ray.get(reference)
        except self._ray.exceptions.RayError as error:
            self._kill(flight.actor)
            why = str(error).strip().splitlines()[0][:300]
            return flight.job, Trace(status="error", message=f"the worker died: {why}", target=flight.job.target)
        idle.append(flight.actor)
        if kind == "broken":
            raise ProblemError(content)
        return flight.job, content

    def _ask(self, flight: _Flight) -> Pulse | None:
        if flight.question is None:
            flight.question = flight.actor.news.remote()
        answered, _ = self._ray.wait([flight.question], timeout=0)
        if not answered:
            return None
        question, flight.question = flight.question, None
        try:
            count, steps, metric = self._ray.get(question)
        except self._ray.exceptions.RayError:
            return None
        if count == flight.count:
            return None
        first, flight.count, flight.heard = not flight.alive, count, monotonic()
        return None if first else Pulse(flight.job, steps, metric)

    def _kill(self, actor: Any) -> None:
        if actor in self._pool:
            self._pool.remove(actor)
        self._ray.kill(actor)


class _Flight:
    """A run in progress on an actor."""

    def __init__(self, job: Job, actor: Any) -> None:
        self.job = job
        self.actor = actor
        self.heard = monotonic()
        self.count = -1
        self.question: Any = None

    @property
    def alive(self) -> bool:
        """Whether the actor has answered since the run was handed to it; a new one imports torch first."""
        return self.count >= 0


def _address(name: str) -> str | None:
    if name.startswith("ray://"):
        return name
    if name.startswith("ray:"):
        return name.removeprefix("ray:")
    return os.environ.get("RAY_ADDRESS")


def _reach(address: str) -> None:
    """Say at once that nobody listens there; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address in ("auto", "local") or not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=REACH_SECONDS).close()
    except OSError as error:
        raise EngineError(
            f"no Ray cluster answers at {address} ({error}); start one with `ray start --head`, "
            "correct the address, or race with --engine local"
        ) from error
