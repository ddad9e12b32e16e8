"""The process at the other end of `LocalEngine`: reads jobs from standard input, writes results to standard output.

A frame is a length (8 bytes, little endian) and a pickled message; frames only travel between a parent and the
workers that it started itself. When the parent is gone, standard input ends and so does the worker, even if a run is
in progress.
"""

from __future__ import annotations

import os
import queue
import signal
import struct
import sys
import threading
from time import monotonic
from typing import Any, BinaryIO

import cloudpickle

HEADER = struct.Struct("<Q")
PULSE_SECONDS = 0.25


def send(stream: BinaryIO, message: Any) -> None:
    """Write one frame."""
    body = cloudpickle.dumps(message)
    stream.write(HEADER.pack(len(body)) + body)
    stream.flush()


def receive(stream: BinaryIO) -> Any:
    """Read one frame; raises `EOFError` at the end of the stream."""
    (length,) = HEADER.unpack(_exactly(stream, HEADER.size))
    return cloudpickle.loads(_exactly(stream, length))


def _exactly(stream: BinaryIO, count: int) -> bytes:
    """`count` bytes; an unbuffered pipe hands out at most its capacity (64 KiB) at a time."""
    parts = []
    while count > 0:
        part = stream.read(count)
        if not part:
            raise EOFError
        parts.append(part)
        count -= len(part)
    return b"".join(parts)


def serve(jobs: queue.Queue[Any], out: BinaryIO) -> None:
    """Execute jobs until the end of time."""
    from hasten.core.engine.job import prepare
    from hasten.core.errors import HastenError
    from hasten.core.trace import Trace

    prepare()
    send(out, ("ready", None))
    while True:
        job = jobs.get()
        last = [monotonic()]

        def pulse(trace: Trace, last: list[float] = last) -> None:
            if monotonic() - last[0] >= PULSE_SECONDS:
                last[0] = monotonic()
                send(out, ("pulse", (trace.steps[-1], trace.metric[-1])))

        try:
            send(out, ("result", job.execute(pulse)))
        except HastenError as error:
            send(out, ("broken", f"{error}"))
        except Exception as error:
            send(out, ("result", Trace(status="error", message=f"{type(error).__name__}: {error}", target=job.target)))


def main() -> None:
    """Keep the protocol's channel to ourselves: whatever user code prints goes to standard error."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    inbox: queue.Queue[Any] = queue.Queue()

    def read() -> None:
        try:
            while True:
                inbox.put(receive(sys.stdin.buffer))
        except (EOFError, OSError):
            os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    try:
        serve(inbox, out)
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
