"""Hashes that say whether a stored result still belongs to the code that made it."""

from __future__ import annotations

import ast
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
    file = _file(module)
    content = file.read_bytes() if file else module.encode()
    return hashlib.sha256(content).hexdigest()[:32]


def closure(*modules: str) -> tuple[str, ...]:
    """These modules and all of hasten's that they import, directly or not, so that a change in any of them shows.

    The core is left out, except for the kinds of problem: what it does is the same for all methods.
    """
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        module = waiting.pop()
        file = _file(module) if module not in found else None
        found.add(module)
        if file is not None and module.startswith("hasten."):
            waiting += _imports(ast.parse(file.read_bytes()))
    return tuple(sorted(found))


def _imports(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            parts = [f"{node.module}.{alias.name}" for alias in node.names]
            parts = [part for part in parts if part.startswith("hasten.") and _file(part)]
            names += parts or [node.module]
    return [
        name
        for name in names
        if name.startswith("hasten.core.kinds.") or (name.startswith("hasten.") and not name.startswith("hasten.core"))
    ]


def _file(module: str) -> Path | None:
    loaded = sys.modules.get(module)
    if loaded is not None:
        origin = getattr(loaded, "__file__", None)
    else:
        try:
            spec = importlib.util.find_spec(module)
        except ModuleNotFoundError:
            return None
        origin = spec.origin if spec else None
    return Path(origin) if origin and Path(origin).is_file() else None


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
