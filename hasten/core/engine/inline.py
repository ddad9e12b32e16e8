"""Engine `inline`: every run in this process, one after the other. For debugging and for very short races."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch

from hasten.core.engine.job import Job, Pulse, prepare
from hasten.core.trace import Trace


class InlineEngine:
    """Runs jobs here. It cannot stop a run that hangs; `local` can."""

    workers = 1

    def execute(self, jobs: Iterable[Job]) -> Iterator[Pulse | tuple[Job, Trace]]:
        threads = torch.get_num_threads()
        prepare()
        try:
            for job in jobs:
                yield job, job.execute()
        finally:
            torch.set_num_threads(threads)

    def close(self) -> None:
        """Nothing to release."""
