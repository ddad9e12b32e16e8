"""Races: same seeds, same numbers; what goes wrong costs only itself; every bad argument is named at the door."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import hasten
from hasten.core import tuning
from hasten.core.engine import Pulse, open_engine
from hasten.core.errors import HastenError, InputError, MismatchError, ProblemError, UnknownNameError
from hasten.core.race import Listener
from hasten.core.store import Store

OWN = Path(__file__).with_name("own.py")


def numbers(result: hasten.Result) -> list[Any]:
    """Everything of a result that must not depend on where and when it was measured."""
    return sorted(
        (run.problem, run.method, run.seed, run.hyper, run.trace.status, run.trace.steps, run.trace.metric)
        for run in result.runs
    )


def own(store: Path, *methods: str, **options: Any) -> hasten.Result:
    options = {"seeds": 2, "trials": 1, "workers": 2, **options}
    return hasten.race(OWN, methods or ("good",), store=store, **options)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> hasten.Result:
    store = tmp_path_factory.mktemp("reference") / "r.db"
    return own(store, "good", "lies", seeds=3, trials=5, engine="inline")


def test_numbers_do_not_depend_on_engine_or_workers(reference: hasten.Result, tmp_path: Path) -> None:
    for workers in (1, 3):
        result = own(tmp_path / f"{workers}.db", "good", "lies", seeds=3, trials=5, workers=workers)
        assert numbers(result) == numbers(reference)


def test_numbers_do_not_depend_on_the_order_of_methods(reference: hasten.Result, tmp_path: Path) -> None:
    assert numbers(own(tmp_path / "r.db", "lies", "good", seeds=3, trials=5, engine="inline")) == numbers(reference)


def test_seeds_are_paired_and_tuning_never_sees_them(tmp_path: Path) -> None:
    own(tmp_path / "r.db", "good", "lies", seeds=3, trials=5, engine="inline", seed=7)
    with Store(tmp_path / "r.db") as store:
        rows = store.rows()
    seeds = {(row["method"], row["role"]): set() for row in rows}
    for row in rows:
        seeds[row["method"], row["role"]].add(row["seed"])
    assert seeds["mine.good", "score"] == seeds["mine.lies", "score"] == {7, 8, 9}
    assert seeds["mine.good", "tune"] == seeds["mine.lies", "tune"] == {7 + tuning.SEED_OFFSET}
    trials = {method: sum(row["method"] == method and row["role"] == "tune" for row in rows) for method, _ in seeds}
    assert trials["mine.good"] == trials["mine.lies"]


def test_tuning_finds_a_better_learning_rate_than_the_default(reference: hasten.Result) -> None:
    tuned = reference.tuned["bowl", "mine.good"]
    assert tuned["lr"] > 0.05
    assert all(run.trace.status == "reached" for run in reference.runs)


def test_what_is_known_is_not_run_again(tmp_path: Path) -> None:
    class Count(Listener):
        def __init__(self) -> None:
            self.fresh = 0

        def stage(self, title: str, total: int, known: int) -> None:
            self.fresh += total - known

    first, second, third = Count(), Count(), Count()
    a = own(tmp_path / "r.db", engine="inline", trials=4, listener=first)
    b = own(tmp_path / "r.db", engine="inline", trials=4, listener=second)
    own(tmp_path / "r.db", engine="inline", trials=4, seeds=3, listener=third)
    assert (first.fresh, second.fresh, third.fresh) == (4 + 2 + 2, 0, 1)
    assert [run.trace for run in a.runs] == [run.trace for run in b.runs]


def test_bad_methods_are_reported_and_the_race_goes_on(tmp_path: Path) -> None:
    names = ("good", "raises", "diverges", "hangs", "dies", "nothing", "lies")
    result = own(tmp_path / "r.db", *names, patience=2.0, seeds=2)
    status = {run.method: (run.trace.status, run.trace.message) for run in result.runs}
    assert status["mine.good"][0] == status["mine.lies"][0] == "budget"
    assert status["mine.raises"][0] == "error"
    assert re.fullmatch(r"ZeroDivisionError: no such luck \(own.py:\d+\)", status["mine.raises"][1])
    assert status["mine.diverges"][0] == "diverged"
    assert status["mine.nothing"] == ("diverged", "the metric became nan at step 1")
    assert status["mine.hangs"] == ("hung", "no sign of life for 2 s")
    assert status["mine.dies"][0] == "error"
    assert "exit status 7" in status["mine.dies"][1]
    assert len(result.runs) == 2 * len(names)
    assert result.best is not None
    assert result.best.method in ("mine.good", "mine.lies")


def test_pulses_tell_how_far_a_run_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STEP_SECONDS", "0.05")
    heard: list[Pulse] = []

    class Hear(Listener):
        def heard(self, event: Any, problem: str, method: str) -> None:
            if isinstance(event, Pulse):
                heard.append(event)

    own(tmp_path / "r.db", seeds=1, listener=Hear())
    assert len(heard) >= 3
    assert [pulse.steps for pulse in heard] == sorted(pulse.steps for pulse in heard)


def test_a_problem_object_and_a_method_of_the_callers_own_reach_the_workers(tmp_path: Path) -> None:
    factor = torch.tensor([1.0, 3.0])
    problem = hasten.minimisation("mine", lambda x: (factor * x * x).sum(), torch.ones(2), budget=30, target=0.5)
    result = hasten.race(problem, ["adamw:lr=0.1"], seeds=2, trials=1, store=tmp_path / "r.db", workers=1)
    assert [run.trace.status for run in result.runs] == ["reached"] * 2


def test_two_problems_make_a_profile(tmp_path: Path) -> None:
    result = hasten.race(
        ["quadratic:cond=10", "quadratic:cond=20"],
        ["adamw", "sgd"],
        seeds=2,
        trials=1,
        budget=30,
        engine="inline",
        store=tmp_path / "r.db",
    )
    assert set(result.problems) == {"quadratic:cond=10.0", "quadratic:cond=20.0"}
    assert len(result.runs) == 8


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"methods": ["adopd"]}, "unknown method 'adopd'. Did you mean adopt"),
        ({"problem": "digit-mlp"}, "unknown problem 'digit-mlp'. Did you mean digits-mlp"),
        ({"problem": "quadratic:con=3"}, r"unknown parameter .* 'con'. Did you mean cond"),
        ({"problem": "quadratic:cond"}, "key=value"),
        ({"problem": "quadratic:dim=x"}, "dim must be of type int, got 'x'"),
        ({"problem": []}, "problem: the list is empty"),
        ({"methods": ["adamw", "adamw"]}, "named once"),
        ({"methods": ["adamw:lr=-1"]}, "-1"),
        ({"methods": ["adamw:lr=nan"]}, "nan"),
        ({"methods": ["adamw:lr"]}, "key=value"),
        ({"methods": ["adamw:speed=3"]}, "speed"),
        ({"target": float("nan")}, "target must be a real number"),
        ({"budget": -5}, "budget must be a positive number"),
        ({"budget": "nan"}, "budget must be a positive number"),
        ({"seeds": 0}, "seeds must be an integer of at least 1, got 0"),
        ({"seeds": 2.5}, "seeds must be an integer"),
        ({"trials": 0}, "trials must be an integer of at least 1, got 0"),
        ({"workers": 0}, "workers must be an integer of at least 1, got 0"),
        ({"patience": -1}, "patience"),
        ({"cost": "money"}, "cost must be one of"),
        ({"engine": "cloud"}, "engine must be 'local', 'inline' or 'ray'"),
        ({"baseline": "adamx"}, "unknown method 'adamx'"),
    ],
)
def test_bad_arguments_are_named_at_the_door(arguments: dict[str, Any], message: str, tmp_path: Path) -> None:
    arguments = {"problem": "digits-mlp", "methods": ["adamw"], "store": tmp_path / "r.db", **arguments}
    with pytest.raises(InputError) as caught:
        hasten.race(**arguments)
    assert re.search(message, str(caught.value))


def test_a_mismatch_lists_what_fits(tmp_path: Path) -> None:
    ready = hasten.problem("bilinear-game")
    problem = hasten.Problem(name="own", kind=ready.kind, build=ready.build)
    with pytest.raises(MismatchError, match=r"optim.adamw does not fit 'own' .*Fitting methods: .*extragradient"):
        hasten.race(problem, ["adamw"], store=tmp_path / "r.db")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = 1", "has no function problem()"),
        ("def problem():\n    return 3", "must return a hasten.Problem, got int"),
        ("def problem():\n    return 1 / 0", r"line 2: return 1 / 0\n  ZeroDivisionError"),
        ("import nonsense_module", r"line 1: import nonsense_module\n  ModuleNotFoundError"),
        ("def problem(:\n", "SyntaxError"),
    ],
)
def test_errors_in_a_users_file_come_with_a_short_traceback(text: str, message: str, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(text)
    with pytest.raises(ProblemError) as caught:
        hasten.race(file, ["adamw"], store=tmp_path / "r.db")
    assert re.search(message.replace("()", r"\(\)"), str(caught.value))
    assert len(str(caught.value).splitlines()) <= 6


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        hasten.race(tmp_path / "absent.py", ["adamw"], store=tmp_path / "r.db")


def test_a_loss_that_is_nan_from_the_start_stops_the_race_and_keeps_the_store(tmp_path: Path) -> None:
    own(tmp_path / "r.db", engine="inline")
    broken = hasten.minimisation("broken", lambda x: x.sum() * float("nan"), torch.ones(2))
    for engine in ("inline", "local"):
        with pytest.raises(ProblemError, match=r"'broken'.*nan at the start"):
            hasten.race(broken, ["adamw"], store=tmp_path / "r.db", engine=engine, trials=1)
    with Store(tmp_path / "r.db") as store:
        assert len(store.rows()) == 2


def test_the_command_gives_one_message_and_no_traceback(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hasten", "race", "digits-mlp", "adopd", "--store", str(tmp_path / "r.db")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 2
    assert "unknown method 'adopd'. Did you mean adopt" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_race_of_a_script_needs_no_main_guard(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import hasten\n"
        f"result = hasten.race({str(OWN)!r}, ['good'], seeds=1, trials=1, store='{tmp_path}/r.db')\n"
        "print(len(result.runs))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout.strip()) == (0, "1"), done.stderr


def test_a_closed_engine_leaves_no_process(tmp_path: Path) -> None:
    engine = open_engine("local", 2)
    own(tmp_path / "r.db", engine=engine, seeds=4)
    processes = [worker.process for worker in engine._pool]  # type: ignore[attr-defined]
    assert len(processes) == 2
    engine.close()
    assert all(process.returncode is not None for process in processes)


def test_every_error_of_ours_is_a_hasten_error() -> None:
    assert issubclass(UnknownNameError, HastenError)
    assert issubclass(UnknownNameError, ValueError)
