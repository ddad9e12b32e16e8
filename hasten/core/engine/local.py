"""Engine `local`: worker processes on this machine, one thread each, fed one run at a time."""

from __future__ import annotations

import os
import selectors
import signal
import subprocess
import sys
import tempfile
from collections import deque
from collections.abc import Iterable, Iterator
from time import monotonic
from typing import IO, Any

from hasten.core import check
from hasten.core.engine.job import Job, Pulse, cores
from hasten.core.engine.worker import receive, send
from hasten.core.errors import EngineError, ProblemError
from hasten.core.trace import Trace

START_SECONDS = 180.0


class LocalEngine:
    """Keeps `workers` processes alive; a run that hangs or kills its process costs only itself.

    Args:
        workers: number of processes; the number of cores if not given.
        patience: seconds without a sign of life after which a run counts as hung.
    """

    def __init__(self, workers: int | None = None, patience: float = 120.0) -> None:
        self.workers = check.integer("workers", cores() if workers is None else workers, 1)
        self.patience = float(check.positive("patience", patience))
        self._pool: list[_Worker] = []

    def execute(self, jobs: Iterable[Job]) -> Iterator[Pulse | tuple[Job, Trace]]:
        waiting = deque(jobs)
        selector = selectors.DefaultSelector()
        for worker in self._pool:
            selector.register(worker.pipe, selectors.EVENT_READ, worker)
        try:
            while waiting or any(worker.job for worker in self._pool):
                while waiting and len(self._pool) < min(self.workers, len(waiting) + self._busy()):
                    self._add(selector)
                for worker in self._pool:
                    if worker.ready and worker.job is None and waiting:
                        worker.start(waiting.popleft())
                for event, _ in selector.select(timeout=0.2):
                    yield from self._listen(event.data, selector)
                for worker in list(self._pool):
                    if worker.overdue(self.patience):
                        yield from self._give_up(worker, selector)
        finally:
            selector.close()
            for worker in [worker for worker in self._pool if worker.job is not None]:
                self._pool.remove(worker)
                worker.kill()

    def close(self) -> None:
        while self._pool:
            self._pool.pop().kill()

    def _busy(self) -> int:
        return sum(worker.job is not None for worker in self._pool)

    def _add(self, selector: selectors.BaseSelector) -> None:
        worker = _Worker()
        self._pool.append(worker)
        selector.register(worker.pipe, selectors.EVENT_READ, worker)

    def _drop(self, worker: _Worker, selector: selectors.BaseSelector) -> None:
        selector.unregister(worker.pipe)
        self._pool.remove(worker)
        worker.kill()

    def _listen(self, worker: _Worker, selector: selectors.BaseSelector) -> Iterator[Pulse | tuple[Job, Trace]]:
        try:
            kind, content = receive(worker.pipe)
        except (EOFError, OSError):
            job, ready, why = worker.job, worker.ready, worker.obituary()
            self._drop(worker, selector)
            if not ready:
                raise EngineError(f"a worker process could not start: {why}") from None
            if job is not None:
                yield job, Trace(status="error", message=f"the worker process died: {why}", target=job.target)
            return
        worker.heard = monotonic()
        if kind == "ready":
            worker.ready = True
        elif worker.job is not None and kind == "pulse":
            yield Pulse(worker.job, *content)
        elif worker.job is not None:
            job, worker.job = worker.job, None
            if kind == "broken":
                raise ProblemError(content)
            yield job, content

    def _give_up(self, worker: _Worker, selector: selectors.BaseSelector) -> Iterator[tuple[Job, Trace]]:
        job = worker.job
        self._drop(worker, selector)
        if job is None:
            raise EngineError(f"a worker process did not start within {START_SECONDS:g} s")
        message = f"no sign of life for {self.patience:g} s"
        yield job, Trace(status="hung", message=message, target=job.target)


class _Worker:
    """One process and the run it is busy with."""

    def __init__(self) -> None:
        self.errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "hasten.core.engine.worker"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.errors,
            bufsize=0,
            env=environment,
            start_new_session=True,
        )
        self.pipe: Any = self.process.stdout
        self.ready = False
        self.job: Job | None = None
        self.heard = monotonic()

    def start(self, job: Job) -> None:
        self.job = job
        self.heard = monotonic()
        try:
            send(self.process.stdin, job)  # type: ignore[arg-type]
        except BrokenPipeError:
            return

    def overdue(self, patience: float) -> bool:
        if not self.ready:
            return monotonic() - self.heard > START_SECONDS
        return self.job is not None and monotonic() - self.heard > patience

    def obituary(self) -> str:
        """Why the process ended: its signal or exit status, and the last line that it wrote."""
        code = self.process.wait()
        cause = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit status {code}"
        self.errors.seek(0)
        lines = [line.strip() for line in self.errors.read().decode(errors="replace").splitlines() if line.strip()]
        return f"{cause}; {lines[-1][:300]}" if lines else cause

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.errors):
            if stream is not None:
                stream.close()
