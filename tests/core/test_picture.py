"""Pictures of answers: how they are encoded, when a run makes one, where it is kept, what the report shows."""

from __future__ import annotations

import base64
import json
import re
import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import race_samples
import torch

import hasten
from hasten.core import picture, report
from hasten.core.catalogue import load_problem
from hasten.core.engine import Job, Reference
from hasten.core.errors import InputError, ProblemError
from hasten.core.kinds.sample import sampling
from hasten.core.result import Result
from hasten.core.run import Budget, run
from hasten.core.store import VERSION, Store
from hasten.core.trace import Trace
from hasten.numerics.mixture import circle
from hasten.numerics.noise import VPLinear

PICTURED = Path(__file__).with_name("pictured.py")


def decode(png: str) -> np.ndarray:
    """Pixels of a PNG without filters, checksums compared."""
    data = base64.b64decode(png)
    assert data[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, place = {}, 8
    while place < len(data):
        (length,) = struct.unpack_from(">I", data, place)
        body = data[place + 4 : place + 8 + length]
        assert struct.unpack_from(">I", data, place + 8 + length) == (zlib.crc32(body),)
        chunks[body[:4]] = body[4:]
        place += 12 + length
    width, height, depth, colour = struct.unpack_from(">IIBB", chunks[b"IHDR"])
    assert depth == 8
    channels = {0: 1, 2: 3}[colour]
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, -1)
    assert not rows[:, 0].any()
    pixels = rows[:, 1:].reshape(height, width, channels)
    return pixels if channels == 3 else pixels[..., 0]


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 3), (1, 1), (512, 512)])
def test_a_picture_comes_back_bit_for_bit(shape: tuple[int, ...]) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert np.array_equal(decode(picture.encode(torch.from_numpy(pixels))), pixels)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.zeros((4, 4)), "must be uint8"),
        (np.zeros((4, 4, 4), np.uint8), "must be uint8 of shape"),
        (np.zeros((0, 4), np.uint8), "must be uint8 of shape"),
        (np.zeros((512, 513), np.uint8), "may have 262,144 values"),
    ],
)
def test_what_is_no_picture_is_refused(pixels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        picture.encode(pixels)


def test_tiles_stand_in_rows_with_white_between() -> None:
    images = torch.tensor([-1.0, 0.0, 1.0, 5.0, torch.nan]).reshape(5, 1, 1, 1).expand(5, 1, 2, 3)
    sheet = picture.tiles(images, columns=2)
    assert sheet.shape == (8, 7)
    assert [sheet[3 * (k // 2), 4 * (k % 2)] for k in range(4)] == [0, 128, 255, 255]
    assert sheet[6, 0] == 0
    assert (sheet[2] == 255).all()
    assert (sheet[:, 3] == 255).all()
    assert (sheet[6:, 4:] == 255).all()
    assert picture.tiles(torch.zeros(3, 3, 2, 2)).shape == (2, 8, 3)
    with pytest.raises(InputError, match="must have shape"):
        picture.tiles(torch.zeros(4, 8))


class TestRun:
    def test_makes_a_picture_of_the_last_answer_on_request_only(self) -> None:
        problem = load_problem(PICTURED)
        method = hasten.get("diffusion.ddim").make()
        assert run(method, problem).picture is None
        trace = run(method, problem, picture=True)
        expected = problem.build(0).picture(trace.answer)
        assert np.array_equal(decode(str(trace.picture)), expected)
        assert expected.shape == (17, 23, 3)

    def test_none_where_the_problem_makes_none_or_the_run_failed(self) -> None:
        denoiser = circle().denoiser(VPLinear())
        plain = sampling("plain", denoiser, (4, 2), rungs=(4,))
        assert run(hasten.get("diffusion.ddim").make(), plain, picture=True).picture is None
        broken = sampling("b", denoiser, (4, 2), rungs=(4,), metric=lambda x: float("nan"), picture=lambda x: 1 / 0)
        trace = run(hasten.get("diffusion.ddim").make(), broken, picture=True)
        assert (trace.status, trace.picture) == ("diverged", None)

    def test_a_broken_picture_is_the_problems_fault(self) -> None:
        broken = sampling("b", circle().denoiser(VPLinear()), (4, 2), rungs=(4,), picture=lambda x: x)
        with pytest.raises(ProblemError, match=r"'b': its picture failed: InputError: a picture must be uint8"):
            run(hasten.get("diffusion.ddim").make(), broken, picture=True)


def race(store: Path, engine: str, **options: Any) -> Result:
    methods = ("diffusion.ddim", "diffusion.dpm-solver-2")
    return hasten.race(PICTURED, methods, store=store, engine=engine, seeds=2, trials=1, workers=1, **options)


def pictures(result: Result) -> dict[tuple[str, int], str | None]:
    return {(run.method, run.seed): run.trace.picture for run in result.runs}


@pytest.mark.parametrize("engine", ["inline", "local"])
def test_a_race_keeps_the_pictures_of_its_first_seed(engine: str, tmp_path: Path) -> None:
    first = pictures(race(tmp_path / "r.db", engine))
    assert {key for key, png in first.items() if png} == {("diffusion.ddim", 0), ("diffusion.dpm-solver-2", 0)}
    assert pictures(race(tmp_path / "r.db", engine)) == first
    assert pictures(race(tmp_path / "other.db", "inline")) == first


@pytest.mark.alone
def test_a_race_on_ray_brings_the_same_pictures(tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="Ray is not installed (pip install 'hasten[ray]')")
    assert pictures(race(tmp_path / "ray.db", "ray")) == pictures(race(tmp_path / "r.db", "inline"))


class TestStore:
    JOB = Job("a", Reference("name", "p"), "optim.adamw", {}, 0, Budget(steps=5), None, "score")

    def test_the_picture_lies_beside_the_trace(self, tmp_path: Path) -> None:
        with Store(tmp_path / "r.db") as store:
            store.put(self.JOB, "p", Trace(picture="first"), {})
            store.put(self.JOB, "p", Trace(picture="second"), {})
            assert store.get(["a"])["a"].picture == "first"
            assert len(store.rows()) == 1
        with sqlite3.connect(tmp_path / "r.db") as db:
            assert "first" not in db.execute("SELECT trace FROM runs").fetchone()[0]

    def test_a_file_from_before_there_were_pictures_opens_and_takes_them(self, tmp_path: Path) -> None:
        path = tmp_path / "old.db"
        with Store(path) as store:
            store.put(self.JOB, "p", Trace(status="done"), {})
        with sqlite3.connect(path) as db:
            db.execute("DROP TABLE pictures")
            db.execute("PRAGMA user_version=1")
        with Store(path) as store:
            assert store.get(["a"])["a"] == Trace(status="done")
            store.put(Job(**{**vars(self.JOB), "key": "b"}), "p", Trace(picture="new"), {})
            assert [store.get([key])[key].picture for key in "ab"] == [None, "new"]
        with sqlite3.connect(path) as db:
            assert db.execute("PRAGMA user_version").fetchone() == (VERSION,)


class TestReport:
    def test_shows_one_captioned_picture_per_method_best_first(self, tmp_path: Path) -> None:
        result = race(tmp_path / "r.db", "inline")
        page = report.render(result)
        shown = re.findall(r'<img src="data:image/png;base64,([^"]+)" alt="answer of ([^"]+)">', page)
        found = pictures(result)
        order = result.ranking("colours")
        assert shown == [(found[method, 0], result.labels[method]) for method in order]
        captions = re.findall(r"</span></span><small>(.*?)</small></figcaption>", page)
        final = result.cell("colours", order[0])[0].trace.final
        assert captions[0] == f"8 calls · RMS distance to the exact samples {final:.3g}".replace("e-0", "e-")

    def test_without_pictures_nothing_is_added(self) -> None:
        page = report.render(race_samples.single())
        assert not re.findall(r"<(?:img|figure)\b|class=\"gallery\"|Answers", page)

    def test_pictures_survive_plain_data(self, tmp_path: Path) -> None:
        result = race(tmp_path / "r.db", "inline")
        again = Result.from_dict(json.loads(json.dumps(result.to_dict(), default=str)))
        assert pictures(again) == pictures(result)
