"""Engine `ray` on a real local Ray with several worker processes: the same numbers, the same manners."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import hasten
from hasten.core.engine import Engine, open_engine
from hasten.core.errors import EngineError, ProblemError

OWN = Path(__file__).with_name("own.py")
pytestmark = pytest.mark.alone


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'hasten[ray]')")
    os.environ.pop("RAY_ADDRESS", None)
    made = open_engine("ray", workers=2, patience=4.0)
    yield made
    made.close()


def numbers(result: hasten.Result) -> list[Any]:
    return sorted((run.method, run.seed, run.hyper, run.trace.status, run.trace.metric) for run in result.runs)


def race(store: Path, engine: Any, *methods: str, **options: Any) -> hasten.Result:
    return hasten.race(OWN, methods, store=store, engine=engine, **{"seeds": 3, "trials": 5, **options})


def test_ray_gives_the_numbers_of_local(engine: Engine, tmp_path: Path) -> None:
    assert engine.workers == 2
    remote = race(tmp_path / "ray.db", engine, "good", "lies")
    local = race(tmp_path / "local.db", "local", "good", "lies")
    assert numbers(remote) == numbers(local)


def test_ready_problems_race_on_ray(engine: Engine, tmp_path: Path) -> None:
    remote = hasten.race("digits-mlp", ["adamw", "adopt"], seeds=2, trials=2, engine=engine, store=tmp_path / "a.db")
    here = hasten.race("digits-mlp", ["adamw", "adopt"], seeds=2, trials=2, engine="inline", store=tmp_path / "b.db")
    assert numbers(remote) == numbers(here)


def test_bad_methods_cost_only_themselves(engine: Engine, tmp_path: Path) -> None:
    result = race(tmp_path / "r.db", engine, "good", "raises", "hangs", "dies", "diverges", seeds=1, trials=1)
    status = {run.method: run.trace.status for run in result.runs}
    assert status == {
        "mine.good": "budget",
        "mine.raises": "error",
        "mine.hangs": "hung",
        "mine.dies": "error",
        "mine.diverges": "diverged",
    }


def test_a_broken_problem_is_told(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "broken.py"
    file.write_text(
        "import hasten, torch\n"
        "def problem():\n"
        "    return hasten.minimisation('broken', lambda x: x.sum() * float('nan'), torch.ones(2))\n"
    )
    with pytest.raises(ProblemError, match="nan at the start"):
        hasten.race(file, ["adamw"], engine=engine, store=tmp_path / "r.db", trials=1)


@pytest.mark.parametrize("address", ["ray://127.0.0.1:1", "ray:127.0.0.1:1"])
def test_an_unreachable_cluster_is_named_at_once(address: str, engine: Engine, tmp_path: Path) -> None:
    import ray

    # An initialised Ray would be used as it is; the message is for users who have none yet.
    engine.close()
    assert not ray.is_initialized()
    with pytest.raises(EngineError, match=r"no Ray cluster answers at .*127.0.0.1:1.*--engine local"):
        open_engine(address)
