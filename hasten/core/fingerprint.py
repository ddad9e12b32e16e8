"""Hashes that say whether a stored result still belongs to the code that made it."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any


def digest(*parts: Any) -> str:
    """Hash of plain data (JSON)."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=repr).encode()).hexdigest()[:32]


def source(module: str) -> str:
    """Hash of a module's source file; of its name where there is no file."""
    loaded = sys.modules.get(module)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        spec = importlib.util.find_spec(module)
        origin = spec.origin if spec else None
    content = Path(origin).read_bytes() if origin and Path(origin).is_file() else module.encode()
    return hashlib.sha256(content).hexdigest()[:32]


def sources(*modules: str) -> str:
    """Hash of several modules."""
    return digest(*(source(module) for module in modules))


def machine() -> dict[str, str]:
    """What a figure was measured on."""
    import torch

    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.is_file():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    accelerator = torch.cuda.get_device_name(0) if torch.cuda.is_available() else ""
    return {
        "processor": processor,
        "cores": str(os.cpu_count()),
        "accelerator": accelerator,
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "torch": str(torch.__version__),
    }
