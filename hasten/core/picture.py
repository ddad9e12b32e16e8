"""Pictures of answers: small images, kept as PNG text beside the trace and shown in the report."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from typing import TYPE_CHECKING, Any

import numpy as np

from hasten.core import wording
from hasten.core.errors import InputError

if TYPE_CHECKING:
    from hasten.core.result import Result, Scored

VALUES = 2**18
"""Most values (height x width x channels) of a picture."""


def encode(pixels: Any) -> str:
    """A picture as PNG in base64.

    Args:
        pixels: uint8 array or tensor, (height, width) in grey or (height, width, 3) in colour, at most 262,144 values.

    Raises:
        InputError: another type, shape or size.
    """
    array = np.asarray(pixels)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,)) or array.size == 0:
        raise InputError(
            f"a picture must be uint8 of shape (height, width) or (height, width, 3), got {array.dtype} "
            f"{array.shape}; hasten.core.picture.tiles makes one of a batch of images"
        )
    if array.size > VALUES:
        raise InputError(f"a picture may have {VALUES:,} values, got {array.size:,} {array.shape}; show fewer samples")
    height, width = array.shape[:2]
    rows = np.zeros((height, 1 + array.size // height), np.uint8)
    rows[:, 1:] = array.reshape(height, -1)
    header = struct.pack(">IIBBBBB", width, height, 8, 2 if array.ndim == 3 else 0, 0, 0, 0)
    chunks = _chunk(b"IHDR", header) + _chunk(b"IDAT", zlib.compress(rows.tobytes(), 9)) + _chunk(b"IEND", b"")
    return base64.b64encode(b"\x89PNG\r\n\x1a\n" + chunks).decode("ascii")


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def tiles(images: Any, low: float = -1.0, high: float = 1.0, *, count: int = 64, columns: int = 8) -> np.ndarray:
    """The first images of a batch side by side, as the picture of an answer.

    Args:
        images: real, shape (batch, height, width) or (batch, channels, height, width) with 1 or 3 channels.
        low, high: values that are shown black and white; what lies beyond is cut off.
        count: most images to show.
        columns: images per row.

    Returns:
        uint8 of shape (rows, columns) or (rows, columns, 3), one pixel of white between the images.

    Raises:
        InputError: another shape.
    """
    array = np.asarray(images, dtype=np.float64)
    if array.ndim == 3:
        array = array[:, None]
    if array.ndim != 4 or array.shape[1] not in (1, 3) or array.size == 0:
        raise InputError(f"images must have shape (batch, 1 or 3, height, width), got {array.shape}")
    array = array[:count].transpose(0, 2, 3, 1)
    number, height, width, channels = array.shape
    columns = min(columns, number)
    scaled = np.clip(np.nan_to_num((array - low) / (high - low)), 0.0, 1.0)
    sheet = np.full((math.ceil(number / columns), columns, height + 1, width + 1, channels), 255, np.uint8)
    sheet.reshape(-1, *sheet.shape[2:])[:number, :height, :width] = np.rint(255 * scaled)
    joined = sheet.transpose(0, 2, 1, 3, 4).reshape(-1, columns * (width + 1), channels)[:-1, :-1]
    return joined if channels == 3 else joined[..., 0]


def gallery(result: Result, problem: str) -> list[dict[str, str]]:
    """What the report shows of the pictures on a problem: one per method that has one, best method first."""
    shown = []
    for method in result.ranking(problem):
        run = next((run for run in result.cell(problem, method) if run.trace.picture), None)
        if run is not None:
            name = result.labels[method]
            shown.append({"method": method, "name": name, "png": run.trace.picture, "caption": _caption(result, run)})
    return shown


def _caption(result: Result, run: Scored) -> str:
    by, trace = result.measure(run.problem), run.trace
    spent = wording.amount(float(trace.column(by)[-1]), by)
    measures = result.problems[run.problem].get("measures") or "metric"
    return f"{spent}{f' {by}' if by in ('steps', 'calls') else ''} · {measures} {wording.number(trace.final)}"
