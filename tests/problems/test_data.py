"""The loader of real data sets: both routes give the same arrays, failures say what to do, nothing is unpickled."""

from __future__ import annotations

import io
import os
import pickle
import shutil
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hasten.core.catalogue import problem
from hasten.core.errors import DataError, UnknownNameError
from hasten.problems import data
from hasten.problems.data import SOURCES, load

needs_data = pytest.mark.skipif(
    not os.environ.get("HASTEN_DATA"), reason="set HASTEN_DATA to the folder with the real data sets"
)


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch):
    """No data folder, and a network that refuses every connection."""

    def refuse(*args: Any, **kwargs: Any) -> str:
        raise ConnectionError("no network")

    monkeypatch.delenv("HASTEN_DATA", raising=False)
    monkeypatch.setattr("pooch.retrieve", refuse)
    data._load.cache_clear()
    yield
    data._load.cache_clear()


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_offline_says_what_to_do(offline: None, name: str):
    with pytest.raises(DataError, match="set HASTEN_DATA to a folder that holds") as caught:
        load(name)
    assert SOURCES[name].file in str(caught.value)
    assert "connect to the internet once" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_folder_without_the_file_falls_back_to_the_download(offline: None, tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("HASTEN_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"ETTh1\.csv"):
        load("etth1")


def test_describing_a_data_problem_needs_no_data(offline: None):
    for name in ("cifar10", "tinyshakespeare", "a9a", "etth1"):
        assert problem(name).target is not None


def test_unknown_name():
    with pytest.raises(UnknownNameError, match="Did you mean cora"):
        load("coral")


def test_damaged_file_is_named(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("HASTEN_DATA", str(tmp_path))
    (tmp_path / "cora.npz").write_bytes(b"not an archive")
    with pytest.raises(DataError, match=r"cora\.npz"):
        load("cora")


def test_objects_in_an_archive_are_refused(tmp_path: Path, monkeypatch: Any):
    trap = tmp_path / "sprung"

    class Trap:
        def __reduce__(self) -> Any:
            return (Path.touch, (trap,))

    monkeypatch.setenv("HASTEN_DATA", str(tmp_path))
    np.savez(tmp_path / "cifar10-12k.npz", x_train=np.array([Trap()], dtype=object))
    with pytest.raises(DataError):
        load("cifar10")
    (tmp_path / "cora.npz").write_bytes(pickle.dumps(Trap()))
    with pytest.raises(DataError):
        load("cora")
    assert not trap.exists()


def test_a_download_of_another_content_is_refused(tmp_path: Path, monkeypatch: Any):
    monkeypatch.delenv("HASTEN_DATA", raising=False)

    def deliver(url: str, known_hash: str | None, fname: str, path: Any) -> str:
        (tmp_path / fname).write_bytes(b"35\t1033\n")
        return str(tmp_path / fname)

    monkeypatch.setattr("pooch.retrieve", deliver)
    with pytest.raises(DataError, match="hash differs"):
        load("cora")
    assert not list(tmp_path.iterdir())


def test_git_blob_id():
    # `printf 'hello\n' | git hash-object --stdin`
    assert data._blob_id(b"hello\n") == "ce013625030ba8dba906f756967f9e9ca394464a"


@needs_data
@pytest.mark.parametrize("name", sorted(SOURCES))
def test_local_files(name: str):
    arrays = load(name)
    shapes = {key: array.shape for key, array in arrays.items()}
    assert load(name) is arrays
    assert not any(array.flags.writeable for array in arrays.values())
    assert shapes.items() >= EXPECTED[name].items()


EXPECTED: dict[str, dict[str, tuple[int, ...]]] = {
    "cifar10": {"x_train": (10000, 32, 32, 3), "y_train": (10000,), "x_test": (2000, 32, 32, 3), "y_test": (2000,)},
    "tinyshakespeare": {},
    "a9a": {"x": (16281, 123), "y": (16281,)},
    "cora": {"x": (2708, 1433), "y": (2708,), "edges": (5278, 2), "train": (140,), "val": (500,), "test": (1000,)},
    "etth1": {"x": (17420, 7)},
    "bunny": {"points": (35947, 3)},
}


@needs_data
@pytest.mark.parametrize("name", ["a9a", "etth1"])
def test_the_folder_holds_the_originals(name: str, monkeypatch: Any):
    """Where the folder's file is the public original, its hash is the one that a download is checked against."""
    import pooch

    kind, _, digest = SOURCES[name].originals[0].digest.partition(":")
    assert pooch.file_hash(str(Path(os.environ["HASTEN_DATA"]) / SOURCES[name].file), alg=kind) == digest


def archive(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as made:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            made.addfile(entry, io.BytesIO(content))
    return path


def test_cifar_from_the_binary_archive(tmp_path: Path):
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 256, (13_000, 3073), dtype=np.uint8)
    rows[:, 0] = np.arange(13_000) % 10
    files = {f"data_batch_{part + 1}": rows[part * 2200 : (part + 1) * 2200] for part in range(5)}
    files["test_batch"] = rows[11_000:]
    path = archive(tmp_path / "c.tar.gz", {f"cifar-10-batches-bin/{k}.bin": v.tobytes() for k, v in files.items()})
    arrays = data._cifar_binary(path)
    assert {key: array.shape for key, array in arrays.items()} == EXPECTED["cifar10"]
    assert [array.dtype for array in arrays.values()] == [np.uint8, np.int64] * 2
    assert (np.bincount(arrays["y_train"]) == 1000).all()
    assert (np.bincount(arrays["y_test"]) == 200).all()
    # the archive stores the red plane, row by row, then green, then blue
    assert (arrays["x_train"][7, :, :, 1].ravel() == rows[7, 1 + 1024 : 1 + 2048]).all()


def test_cora_from_text(tmp_path: Path):
    rng = np.random.default_rng(0)
    count, classes = 2708, ["Theory", "Neural_Networks", "Case_Based", "d", "e", "f", "g"]
    words = rng.integers(0, 2, (count, 6))
    lines = [f"{1000 + i}\t" + "\t".join(map(str, words[i])) + f"\t{classes[i % 7]}" for i in range(count)]
    (tmp_path / "content").write_text("\n".join(lines) + "\n")
    (tmp_path / "cites").write_text("1000\t1002\n1002\t1000\n1001\t1001\n1005\t1003\n")
    arrays = data._cora_text(tmp_path / "content", tmp_path / "cites")
    assert (arrays["x"] == words).all()
    assert arrays["edges"].tolist() == [[0, 2], [3, 5]]
    assert (np.bincount(arrays["y"][arrays["train"]]) == 20).all()
    assert [len(arrays[part]) for part in ("train", "val", "test")] == [140, 500, 1000]
    assert len(np.unique(np.concatenate([arrays[part] for part in ("train", "val", "test")]))) == 1640


@settings(max_examples=20, deadline=None)
@given(
    points=st.lists(st.tuples(*[st.floats(-10, 10, width=32)] * 3), min_size=1, max_size=20),
    binary=st.booleans(),
)
def test_ply_round_trip(points: list[tuple[float, float, float]], binary: bool, tmp_path_factory: Any):
    path = tmp_path_factory.mktemp("ply") / "p.ply"
    header = (
        f"ply\nformat {'binary_little_endian' if binary else 'ascii'} 1.0\ncomment made\nelement vertex {len(points)}\n"
        "property float confidence\nproperty float x\nproperty float y\nproperty float z\n"
        "element face 1\nproperty list uchar int vertex_indices\nend_header\n"
    ).encode()
    rows = np.array([(0.5, *point) for point in points], "<f4")
    text = "".join(" ".join(repr(float(v)) for v in row) + "\n" for row in rows) + "3 0 0 0\n"
    path.write_bytes(header + (rows.tobytes() + b"\3" + bytes(12) if binary else text.encode()))
    assert (data._ply(path)["points"] == rows[:, 1:]).all()


def test_svmlight_lines(tmp_path: Path):
    (tmp_path / "t").write_text("-1 1:1 123:0.5 \n+1 \n")
    arrays = data._libsvm(tmp_path / "t")
    assert arrays["y"].tolist() == [-1, 1]
    assert arrays["x"][0, [0, 122]].tolist() == [1, 0.5]
    assert arrays["x"].sum() == 1.5


@needs_data
def test_text_route_is_bytes(tmp_path: Path, monkeypatch: Any):
    shutil.copy(Path(os.environ["HASTEN_DATA"]) / "tinyshakespeare.txt", tmp_path)
    monkeypatch.setenv("HASTEN_DATA", str(tmp_path))
    assert bytes(load("tinyshakespeare")["text"][:13]) == b"First Citizen"
