"""Real data sets: from the folder `HASTEN_DATA`, else downloaded once from their public source and checked by hash.

Nothing is ever unpickled: arrays come from `.npz` files without objects, from text, or from raw bytes.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from hasten.core.errors import DataError, unknown
from hasten.problems.cache import cache_folder

Arrays = dict[str, np.ndarray]

_PYGCN = "https://raw.githubusercontent.com/tkipf/pygcn/1600b5b748b3976413d1e307540ccc62605b4d6d/data/cora/"
_CHAR_RNN = "https://raw.githubusercontent.com/karpathy/char-rnn/6f9487a6fe5b420b7ca9afb0d7c078e37c1d1b4e/"
_ETT = "https://raw.githubusercontent.com/zhouhaoyi/ETDataset/1d16c8f4f943005d613b5bc962e9eeb06058cf07/"
_OPEN3D = "https://github.com/isl-org/open3d_downloads/releases/download/20220201-data/"


@dataclass(frozen=True)
class Original:
    """A public file; `digest` is `md5:...`, `sha256:...` or `git:...` (the blob id of a Git repository)."""

    name: str
    url: str
    digest: str


@dataclass(frozen=True)
class Source:
    """Where a data set comes from: a file of the data folder, or public originals; each with its reader."""

    file: str
    read: Callable[[Path], Arrays]
    originals: tuple[Original, ...]
    read_originals: Callable[..., Arrays]


def load(name: str) -> Mapping[str, np.ndarray]:
    """Arrays of a data set by name; read once per process, so the arrays are shared and read-only.

    ================ ====================================================================================
    `cifar10`        `x_train` (10000, 32, 32, 3) and `x_test` (2000, 32, 32, 3) uint8, `y_train`, `y_test` int64;
                     equally many of each class. From the original archive: the first of each class, in its order.
    `tinyshakespeare` `text` (about 1.1 million,) uint8: the bytes of the text
    `a9a`            `x` (16281, 123) float32 in {0, 1}, `y` (16281,) float32 in {-1, +1}: LIBSVM's a9a.t
    `cora`           `x` (2708, 1433) float32 words in {0, 1}, `y` (2708,) int64 in 0..6, `edges` (5278, 2) int64 of
                     undirected edges, index arrays `train` (140), `val` (500), `test` (1000)
    `etth1`          `x` (17420, 7) float32, hourly; the last column is the oil temperature
    `bunny`          `points` (35947, 3) float64, the Stanford bunny in metres
    ================ ====================================================================================

    The folder's Cora has the Planetoid split. The original text has another order of nodes, hence another split of
    the same sizes: the first 20 nodes of each class, the next 500 nodes, the last 1000.

    Raises:
        UnknownNameError: no data set has this name.
        DataError: it is neither in the folder nor downloadable, or a file is damaged.
    """
    if name not in SOURCES:
        raise unknown("data set", name, SOURCES, f"Data sets: {', '.join(sorted(SOURCES))}.")
    return _load(name, os.environ.get("HASTEN_DATA", ""))


@cache
def _load(name: str, folder: str) -> Arrays:
    source = SOURCES[name]
    local = Path(folder).expanduser() / source.file if folder else None
    if local is not None and local.is_file():
        arrays = _read(name, source.read, local)
    else:
        arrays = _read(name, source.read_originals, *(_download(source, original) for original in source.originals))
    for array in arrays.values():
        array.setflags(write=False)
    return arrays


def _read(name: str, read: Callable[..., Arrays], *paths: Path) -> Arrays:
    try:
        return read(*paths)
    except (OSError, ValueError, KeyError, IndexError, EOFError, tarfile.TarError) as error:
        files = " and ".join(map(str, paths))
        raise DataError(
            f"data set {name!r} cannot be read from {files} ({error}); delete the file and retry"
        ) from error


def _download(source: Source, original: Original) -> Path:
    import pooch

    kind, _, digest = original.digest.partition(":")
    known = original.digest if kind != "git" else None
    try:
        path = Path(pooch.retrieve(original.url, known, fname=original.name, path=cache_folder()))
    except Exception as error:  # the reason is in the message; the chain below pooch is a hundred lines long
        raise DataError(
            f"data for this problem are not on this machine: set HASTEN_DATA to a folder that holds {source.file}, "
            f"or connect to the internet once ({original.url}: {type(error).__name__})"
        ) from None
    if known is None and _blob_id(path.read_bytes()) != digest:
        path.unlink()
        raise DataError(
            f"{original.url} is not the expected file (its hash differs); set HASTEN_DATA to a folder that "
            f"holds {source.file}"
        )
    return path


def _blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _npz(path: Path) -> Arrays:
    with np.load(path, allow_pickle=False) as archive:
        return {key: archive[key] for key in archive.files}


def _cifar_npz(path: Path) -> Arrays:
    arrays = _npz(path)
    return {key: arrays[key] if key[0] == "x" else arrays[key].astype(np.int64) for key in _CIFAR_KEYS}


_CIFAR_KEYS = ("x_train", "y_train", "x_test", "y_test")


def _cifar_binary(path: Path) -> Arrays:
    def records(archive: tarfile.TarFile, *names: str) -> np.ndarray:
        content = b""
        for name in names:
            member = archive.extractfile(f"cifar-10-batches-bin/{name}.bin")
            if member is None:
                raise ValueError(f"{name}.bin is missing")
            content += member.read()
        return np.frombuffer(content, np.uint8).reshape(-1, 1 + 3 * 32 * 32)

    def balanced(rows: np.ndarray, each: int) -> tuple[np.ndarray, np.ndarray]:
        keep = np.sort(np.concatenate([np.flatnonzero(rows[:, 0] == label)[:each] for label in range(10)]))
        images = rows[keep, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
        return np.ascontiguousarray(images), rows[keep, 0].astype(np.int64)

    with tarfile.open(path, "r:gz") as archive:
        train = balanced(records(archive, *(f"data_batch_{part}" for part in range(1, 6))), 1000)
        test = balanced(records(archive, "test_batch"), 200)
    return dict(zip(_CIFAR_KEYS, (*train, *test)))


def _text(path: Path) -> Arrays:
    return {"text": np.frombuffer(path.read_bytes(), np.uint8).copy()}


def _libsvm(path: Path) -> Arrays:
    lines = path.read_text(encoding="ascii").splitlines()
    x = np.zeros((len(lines), 123), np.float32)
    y = np.zeros(len(lines), np.float32)
    for row, line in enumerate(lines):
        label, *features = line.split()
        y[row] = float(label)
        for feature in features:
            column, _, value = feature.partition(":")
            x[row, int(column) - 1] = float(value)
    return {"x": x, "y": y}


def _cora_npz(path: Path) -> Arrays:
    arrays = _npz(path)
    x = np.zeros(tuple(arrays["shape"]), np.float32)
    x[arrays["feature_row"], arrays["feature_col"]] = arrays["feature_value"]
    edges = arrays["edge"].astype(np.int64)
    split = {key: arrays[key].astype(np.int64) for key in ("train", "val", "test")}
    return {"x": x, "y": arrays["label"].astype(np.int64), "edges": edges, **split}


def _cora_text(content: Path, cites: Path) -> Arrays:
    rows = [line.split() for line in content.read_text(encoding="ascii").splitlines()]
    place = {row[0]: index for index, row in enumerate(rows)}
    labels = {label: index for index, label in enumerate(sorted({row[-1] for row in rows}))}
    x = np.array([row[1:-1] for row in rows], np.float32)
    y = np.array([labels[row[-1]] for row in rows], np.int64)
    pairs = [line.split() for line in cites.read_text(encoding="ascii").splitlines()]
    links = {tuple(sorted((place[cited], place[citing]))) for cited, citing in pairs if cited != citing}
    train = np.sort(np.concatenate([np.flatnonzero(y == label)[:20] for label in labels.values()]))
    rest = np.setdiff1d(np.arange(len(y)), train)
    return {
        "x": x,
        "y": y,
        "edges": np.array(sorted(links), np.int64),
        "train": train,
        "val": rest[:500],
        "test": rest[-1000:],
    }


def _table(path: Path) -> Arrays:
    return {"x": np.loadtxt(path, np.float32, delimiter=",", skiprows=1, usecols=range(1, 8), encoding="ascii")}


def _points(path: Path) -> Arrays:
    return {"points": np.loadtxt(path, np.float64)}


def _ply(path: Path) -> Arrays:
    """Vertex positions of a PLY file, text or little-endian binary, whose vertex properties are floats."""
    header, mark, body = path.read_bytes().partition(b"end_header\n")
    lines = [line.split() for line in header.decode("ascii").splitlines()]
    elements = [line for line in lines if line[:1] == ["element"]]
    if not mark or elements[0][1] != "vertex":
        raise ValueError("not a PLY file that starts with its vertices")
    count = int(elements[0][2])
    first = lines.index(elements[0]) + 1
    properties: list[tuple[str, str]] = []
    for line in lines[first:]:
        if line[0] != "property":
            break
        properties.append((line[2], {"float": "<f4", "float32": "<f4", "double": "<f8", "uchar": "u1"}[line[1]]))
    if ["format", "ascii", "1.0"] in lines:
        table = np.loadtxt(io.BytesIO(body), np.float64, max_rows=count, ndmin=2)
        return {"points": table[:, [[name for name, _ in properties].index(axis) for axis in "xyz"]]}
    vertices = np.frombuffer(body, np.dtype(properties), count)
    return {"points": np.stack([vertices[axis] for axis in "xyz"], 1).astype(np.float64)}


SOURCES: dict[str, Source] = {
    "cifar10": Source(
        "cifar10-12k.npz",
        _cifar_npz,
        (
            Original(
                "cifar-10-binary.tar.gz",
                "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
                "md5:c32a1d4ab5d03f1284b67883e8d87530",
            ),
        ),
        _cifar_binary,
    ),
    "tinyshakespeare": Source(
        "tinyshakespeare.txt",
        _text,
        (
            Original(
                "tinyshakespeare.txt",
                _CHAR_RNN + "data/tinyshakespeare/input.txt",
                "sha256:86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed",
            ),
        ),
        _text,
    ),
    "a9a": Source(
        "a9a.t",
        _libsvm,
        (
            Original(
                "a9a.t",
                "https://www.csie.ntu.edu.tw/~cjlin/libsvmtools/datasets/binary/a9a.t",
                "sha256:1f448a153f0320399a7e40836eb207655b0bde0f21fc941cc472193daa9f5de9",
            ),
        ),
        _libsvm,
    ),
    "cora": Source(
        "cora.npz",
        _cora_npz,
        (
            Original("cora.content", _PYGCN + "cora.content", "git:23205398c433481a3b8c504e95e9f15adb47fe13"),
            Original("cora.cites", _PYGCN + "cora.cites", "git:d971e9d07e5f439864ac216697287faad7eb4406"),
        ),
        _cora_text,
    ),
    "etth1": Source(
        "ETTh1.csv",
        _table,
        (
            Original(
                "ETTh1.csv",
                _ETT + "ETT-small/ETTh1.csv",
                "sha256:f18de3ad269cef59bb07b5438d79bb3042d3be49bdeecf01c1cd6d29695ee066",
            ),
        ),
        _table,
    ),
    "bunny": Source(
        "bunny.xyz",
        _points,
        (Original("BunnyMesh.ply", _OPEN3D + "BunnyMesh.ply", "md5:568f871d1a221ba6627569f1e6f9a3f2"),),
        _ply,
    ),
}
