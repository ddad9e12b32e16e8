"""Peak memory of a run, read from the operating system and from the accelerator; nothing is declared."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def _status(key: str) -> int:
    for line in _STATUS.read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024
    return 0


def settle() -> None:
    """Give freed memory back to the system, so that what the next run takes shows again. Takes a tenth of a second."""
    gc.collect()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


class PeakMemory:
    """Most memory held since construction, above what was held then.

    On Linux the kernel's high-water mark of the resident set is reset at the start, so each run in a process
    gets its own; elsewhere the process's maximum is taken, which only grows. On CUDA the allocator's peak is added.
    """

    def __init__(self) -> None:
        self._cuda = torch.cuda.is_available() and torch.cuda.is_initialized()
        if self._cuda:
            torch.cuda.reset_peak_memory_stats()
        try:
            _CLEAR.write_text("5")
            self._start = _status("VmRSS")
            self._linux = True
        except OSError:
            self._start = self._maximum()
            self._linux = False

    @staticmethod
    def _maximum() -> int:
        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit

    def read(self) -> int:
        """Bytes."""
        host = (_status("VmHWM") if self._linux else self._maximum()) - self._start
        return max(host, 0) + (torch.cuda.max_memory_allocated() if self._cuda else 0)
