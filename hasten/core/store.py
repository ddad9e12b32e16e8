"""The results file: one SQLite database that several races may write to at once."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from hasten.core.engine.job import Job
from hasten.core.errors import StoreError
from hasten.core.trace import Trace

VERSION = 2
DEFAULT = Path(".hasten") / "results.db"
_SCHEMA = (
    """
CREATE TABLE IF NOT EXISTS runs (
    key TEXT PRIMARY KEY,
    problem TEXT NOT NULL,
    method TEXT NOT NULL,
    hyper TEXT NOT NULL,
    seed INTEGER NOT NULL,
    role TEXT NOT NULL,
    status TEXT NOT NULL,
    trace TEXT NOT NULL,
    machine TEXT NOT NULL,
    created TEXT NOT NULL
) WITHOUT ROWID
""",
    "CREATE TABLE IF NOT EXISTS pictures (key TEXT PRIMARY KEY, png TEXT NOT NULL)",
)
_FOUND = "FROM runs LEFT JOIN pictures USING (key)"
_WAIT_SECONDS = 60.0


class Store:
    """Finished runs by key. A run is written whole or not at all, once: a second write of a key changes nothing.

    Args:
        path: the file; made, with its folder, if it is not there.

    Raises:
        StoreError: not a results file, damaged, of a newer hasten, not writable, or the disk is full. The file
            is left as it was.
    """

    def __init__(self, path: str | Path = DEFAULT) -> None:
        self.path = Path(path)
        with self._explained():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(self.path, timeout=_WAIT_SECONDS, isolation_level=None)
            self._open()

    def _open(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > VERSION:
            self._db.close()
            raise StoreError(
                f"{self.path} was written by a newer hasten (format {version}, this one reads {VERSION}): "
                "upgrade hasten, or choose another file with --store"
            )
        if version < VERSION:
            tables = {row[0] for row in self._db.execute("SELECT name FROM sqlite_master WHERE type='table'")}
            if tables - {"runs", "pictures"}:
                self._db.close()
                raise StoreError(f"{self.path} is a database of something else; choose another file with --store")
            self._db.execute("PRAGMA journal_mode=WAL")
            with self._transaction():
                for statement in _SCHEMA:
                    self._db.execute(statement)
                self._db.execute(f"PRAGMA user_version={VERSION}")
        self._db.execute("PRAGMA synchronous=NORMAL")
        check = self._db.execute("PRAGMA quick_check(1)").fetchone()[0]
        if check != "ok":
            self._db.close()
            raise StoreError(self._damaged(check))

    def get(self, keys: Iterable[str]) -> dict[str, Trace]:
        """Traces of those keys that are finished."""
        found = {}
        with self._explained():
            for key in keys:
                row = self._db.execute(f"SELECT trace, png {_FOUND} WHERE key=?", (key,)).fetchone()
                if row is not None:
                    found[key] = _decode(row[0])
                    found[key].picture = row[1]
        return found

    def put(self, job: Job, problem: str, trace: Trace, machine: dict[str, str]) -> None:
        """Keep a finished run, and its picture if it has one."""
        row = (
            job.key,
            problem,
            job.method,
            json.dumps(dict(job.hyper), sort_keys=True),
            job.seed,
            job.role,
            trace.status,
            json.dumps(trace.to_dict()),
            json.dumps(machine),
            datetime.now(timezone.utc).isoformat(timespec="seconds"),
        )
        with self._explained(), self._transaction():
            new = self._db.execute(f"INSERT OR IGNORE INTO runs VALUES ({','.join('?' * len(row))})", row).rowcount
            if new and trace.picture:
                self._db.execute("INSERT OR REPLACE INTO pictures VALUES (?,?)", (job.key, trace.picture))

    def rows(self) -> list[dict[str, Any]]:
        """Every run in the file, oldest first; without the pictures."""
        names = ("key", "problem", "method", "hyper", "seed", "role", "status", "trace", "machine", "created")
        with self._explained():
            found = self._db.execute(f"SELECT {','.join(names)} FROM runs ORDER BY created, key").fetchall()
        decode = {"hyper": json.loads, "trace": _decode, "machine": json.loads}
        return [{name: decode.get(name, _same)(value) for name, value in zip(names, row)} for row in found]

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def __enter__(self) -> Store:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @contextmanager
    def _transaction(self) -> Any:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise

    @contextmanager
    def _explained(self) -> Any:
        try:
            yield
        except sqlite3.OperationalError as error:
            code = getattr(error, "sqlite_errorname", "")
            if code == "SQLITE_FULL" or "disk is full" in str(error):
                raise StoreError(
                    f"the disk is full: the last run could not be written to {self.path}. Everything before it is "
                    "kept; free some space and repeat the same command to go on"
                ) from error
            raise StoreError(f"{self.path} cannot be used ({error}); check the folder or choose --store") from error
        except sqlite3.DatabaseError as error:
            raise StoreError(self._damaged(str(error))) from error
        except (FileExistsError, NotADirectoryError, PermissionError) as error:
            raise StoreError(f"{self.path} cannot be used ({error}); choose another file with --store") from error

    def _damaged(self, why: str) -> str:
        return (
            f"{self.path} is not a readable results file ({why}). It was left untouched: move it away, restore a copy, "
            "or choose another file with --store"
        )


def _same(value: Any) -> Any:
    return value


def _decode(text: str) -> Trace:
    return Trace.from_dict(json.loads(text))
