"""The results file: nothing is lost, doubled or half-written, whatever happens to it."""

from __future__ import annotations

import math
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hasten.core.engine import Job, Reference
from hasten.core.errors import StoreError
from hasten.core.run import Budget
from hasten.core.store import VERSION, Store
from hasten.core.trace import Trace


def job(key: str) -> Job:
    return Job(key, Reference("name", "quadratic"), "optim.adamw", {"lr": 0.1}, 0, Budget(steps=5), None, "score")


def trace(value: float = 1.0) -> Trace:
    made = Trace(status="reached", target=0.1)
    made.append(0, 0.0, value, {"gradient": 0}, 0)
    made.append(1, 0.5, value / 3, {"gradient": 1, "value": 2}, 8)
    return made


def test_a_trace_comes_back_bit_for_bit(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        store.put(job("a"), "quadratic", trace(math.pi), {})
        assert store.get(["a", "missing"]) == {"a": trace(math.pi)}
        assert store.get(["a"])["a"].calls == {"gradient": [0, 1], "value": [0, 2]}


@given(st.lists(st.floats(allow_nan=False), max_size=20), st.text(max_size=40))
def test_any_trace_survives_json(values: list[float], message: str) -> None:
    made = Trace(message=message)
    for index, value in enumerate(values):
        made.append(index, value, value, {}, index)
    with Store(":memory:") as store:
        store.put(job("k"), "p", made, {})
        assert store.get(["k"])["k"] == made


def test_a_second_write_of_a_key_changes_nothing(tmp_path: Path) -> None:
    with Store(tmp_path / "r.db") as store:
        store.put(job("a"), "quadratic", trace(1.0), {})
        store.put(job("a"), "quadratic", trace(2.0), {})
        assert len(store.rows()) == 1
        assert store.get(["a"])["a"] == trace(1.0)


def test_two_writers_at_once_lose_nothing(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    Store(path).close()

    def write(prefix: str) -> None:
        with Store(path) as store:
            for index in range(60):
                store.put(job(f"{prefix}{index}"), "quadratic", trace(index), {})
                store.put(job(f"shared{index}"), "quadratic", trace(index), {})

    threads = [threading.Thread(target=write, args=(prefix,)) for prefix in "abc"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with Store(path) as store:
        assert len(store.rows()) == 4 * 60


def test_a_damaged_file_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    with Store(path) as store:
        for index in range(200):
            store.put(job(str(index)), "quadratic", trace(index), {})
    content = bytearray(path.read_bytes())
    content[5000 : len(content) - 5000] = os.urandom(len(content) - 10000)
    path.write_bytes(content)
    with pytest.raises(StoreError, match="not a readable results file"):
        Store(path)
    assert path.read_bytes() == content


def test_a_file_of_something_else_is_refused_and_left_untouched(tmp_path: Path) -> None:
    text = tmp_path / "notes.db"
    text.write_text("dear diary " * 100)
    with pytest.raises(StoreError, match="choose another file with --store"):
        Store(text)
    assert text.read_text().startswith("dear diary")
    other = tmp_path / "other.db"
    with sqlite3.connect(other) as db:
        db.execute("CREATE TABLE people (name TEXT)")
    with pytest.raises(StoreError, match="database of something else"):
        Store(other)


def test_a_newer_file_is_refused_and_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "r.db"
    Store(path).close()
    with sqlite3.connect(path) as db:
        db.execute(f"PRAGMA user_version={VERSION + 1}")
    before = path.read_bytes()
    with pytest.raises(StoreError, match="newer hasten"):
        Store(path)
    assert path.read_bytes() == before


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="--store"):
        Store(tmp_path / "file" / "r.db")
    with pytest.raises(StoreError, match="--store"):
        Store(tmp_path)


FULL = """
import resource, signal, sys
from hasten.core.errors import StoreError
from hasten.core.store import Store
sys.path.insert(0, sys.argv[2])
from test_store import job, trace
with Store(sys.argv[1]) as store:
    for index in range(10**6):
        try:
            store.put(job(f"new{index}"), "quadratic", trace(index), {"padding": "x" * 2000})
        except StoreError as error:
            assert "disk is full" in str(error), error
            break
    print(len(store.rows()))
"""


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs unshare to make a small disk")
def test_a_full_disk_keeps_every_earlier_run(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    script = tmp_path / "full.py"
    script.write_text(FULL)
    mount = f"mount -t tmpfs -o size=600k tmpfs {disk}"
    check = f"{sys.executable} {script} {disk}/r.db {Path(__file__).parent} && "
    command = f"{mount} && {check} cp {disk}/r.db* {tmp_path}/"
    done = subprocess.run(["unshare", "-rm", "sh", "-c", command], capture_output=True, text=True, timeout=120)
    if "unshare" in done.stderr or "mount:" in done.stderr:
        pytest.skip(f"this system does not let us mount a small disk: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    written = int(done.stdout)
    assert written > 5
    with Store(tmp_path / "r.db") as store:
        assert len(store.rows()) == written
        store.put(job("after"), "quadratic", trace(), {})
        assert len(store.rows()) == written + 1
