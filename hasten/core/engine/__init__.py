"""Engines: where runs are executed. All give the same numbers; only the seconds differ."""

from __future__ import annotations

from hasten.core.engine.job import Engine, Job, Pulse, Reference
from hasten.core.errors import InputError


def open_engine(name: str = "local", workers: int | None = None, patience: float = 120.0) -> Engine:
    """The engine of that name: `local` (processes on this machine), `inline` (this process) or `ray`.

    `ray` starts Ray on this machine or joins the cluster in `RAY_ADDRESS`; `ray://host:port` and `ray:host:port`
    name the cluster. `patience` is how many seconds a run may go without a sign of life.
    """
    if name == "local":
        from hasten.core.engine.local import LocalEngine

        return LocalEngine(workers, patience)
    if name == "inline":
        from hasten.core.engine.inline import InlineEngine

        return InlineEngine()
    if name == "ray" or name.startswith("ray:"):
        from hasten.core.engine.ray import RayEngine

        return RayEngine(name, workers, patience)
    raise InputError(f"engine must be 'local', 'inline' or 'ray' (or 'ray://host:port'), got {name!r}")


__all__ = ["Engine", "Job", "Pulse", "Reference", "open_engine"]
