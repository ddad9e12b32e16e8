"""Imports point one way: families and problems to core and numerics, claims to all of these, nothing back."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import hasten
from hasten.core.registry import FAMILIES

ROOT = Path(hasten.__file__).parent
MAY = {
    "core": {"core"},
    "core/kinds": {"core", "numerics"},
    "numerics": {"numerics", "core"},
    "problems": {"problems", "core", "numerics"},
    "claims": {"claims", "problems", "core", "numerics", *FAMILIES},
    **{family: {family, "core", "numerics"} for family in FAMILIES},
}
PUBLIC = set(hasten.__all__) - set(MAY)


def _imported(file: Path) -> set[str]:
    """Parts of the package that a module imports by name, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            paths = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file.name}:{node.lineno} imports relatively"
            paths = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        found |= {path.split(".")[1] for path in paths if path.startswith("hasten.")}
    return found - PUBLIC


@pytest.mark.parametrize("part", sorted(MAY))
def test_imports_point_one_way(part: str) -> None:
    files = sorted((ROOT / part).rglob("*.py"))
    assert files
    for file in files:
        if part == "core" and "kinds" in file.relative_to(ROOT).parts:
            continue
        assert _imported(file) <= MAY[part], f"{file.relative_to(ROOT.parent)} must not import {_imported(file)}"
