"""`kill -9` at any moment, then the same command: nothing is lost, nothing is doubled, nothing is different."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from hasten.core.store import Store

OWN = Path(__file__).with_name("own.py")
KILLS = int(os.environ.get("HASTEN_KILLS", "6"))
WORKERS = 2


def command(store: Path) -> list[str]:
    options = ["--seeds", "8", "--trials", "6", "--workers", str(WORKERS), "--store", str(store)]
    return [sys.executable, "-m", "hasten", "race", str(OWN), "good", "lies", *options]


def rows(store: Path) -> dict[str, Any]:
    """What must never change: everything about a run but its seconds, its memory and the time of day."""
    if not store.exists():
        return {}
    with Store(store) as opened:
        found = opened.rows()
    assert len({row["key"] for row in found}) == len(found)
    return {
        row["key"]: (row["method"], row["seed"], row["role"], row["hyper"], row["trace"].steps, row["trace"].metric)
        for row in found
    }


def finish(store: Path, slow: str) -> None:
    environment = {**os.environ, "STEP_SECONDS": slow}
    subprocess.run(command(store), check=True, capture_output=True, timeout=300, env=environment)


@pytest.mark.alone
def test_kill_and_resume_loses_and_doubles_nothing(tmp_path: Path) -> None:
    whole, broken = tmp_path / "whole.db", tmp_path / "broken.db"
    finish(whole, "0")
    expected = rows(whole)
    moments = random.Random(0)
    kept: dict[str, Any] = {}
    gained = 0
    for _ in range(KILLS):
        environment = {**os.environ, "STEP_SECONDS": "0.004"}
        process = subprocess.Popen(
            command(broken),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        # Most of the first seconds go to imports; the window reaches from there into the race.
        time.sleep(moments.uniform(1.0, 9.0))
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        now = rows(broken)
        assert all(now[key] == row for key, row in kept.items())
        assert all(expected[key] == row for key, row in now.items())
        gained += len(now) > len(kept)
        kept = now
    finish(broken, "0")
    assert rows(broken) == expected
    assert gained >= 1


@pytest.mark.alone
def test_two_races_at_once_share_a_store(tmp_path: Path) -> None:
    alone, shared = tmp_path / "alone.db", tmp_path / "shared.db"
    finish(alone, "0")
    environment = {**os.environ, "STEP_SECONDS": "0.002"}
    races = [
        subprocess.Popen(command(shared), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    tables = [race.communicate(timeout=300) for race in races]
    assert [race.returncode for race in races] == [0, 0], tables
    assert rows(shared) == rows(alone)


@pytest.mark.alone
def test_interrupt_keeps_what_is_finished(tmp_path: Path) -> None:
    store = tmp_path / "r.db"
    environment = {**os.environ, "STEP_SECONDS": "0.1"}
    process = subprocess.Popen(
        command(store),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not rows(store) and time.monotonic() < deadline:
        time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, told = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "the same command goes on from here" in told
    assert "Traceback" not in told
    kept = rows(store)
    assert kept
    finish(store, "0")
    assert kept.items() <= rows(store).items()
