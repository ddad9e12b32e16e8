"""Frames between an engine and its workers."""

from __future__ import annotations

import os
import threading

import pytest

from hasten.core.engine.worker import receive, send


def test_a_frame_larger_than_the_pipe_arrives_whole() -> None:
    reading, writing = os.pipe()
    message = {"metric": [float(k) for k in range(100_000)]}
    with os.fdopen(reading, "rb", buffering=0) as source, os.fdopen(writing, "wb", buffering=0) as sink:
        thread = threading.Thread(target=send, args=(sink, message), daemon=True)
        thread.start()
        assert receive(source) == message
        thread.join(timeout=10)


def test_a_stream_that_ends_within_a_frame() -> None:
    reading, writing = os.pipe()
    os.write(writing, b"\x10\x00\x00\x00\x00\x00\x00\x00half")
    os.close(writing)
    with os.fdopen(reading, "rb", buffering=0) as source, pytest.raises(EOFError):
        receive(source)
