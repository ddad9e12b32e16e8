"""Every block of code and every `hasten` command in the README and the hand-written pages runs."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pages import PAGES, ROOT, Block, blocks

import hasten
from hasten import cli
from hasten.core import claim, registry
from hasten.core.engine import local

SHELL = {"bash", "console"}
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))


@contextmanager
def registered(entries: dict[str, Any], claims: dict[str, Any]) -> Iterator[None]:
    """What is registered inside is kept in `entries` and `claims`, and gone outside."""
    hasten.methods()
    hasten.claims()
    tables = ((registry._entries, entries), (claim._claims, claims))
    before = [dict(table) for table, _ in tables]
    for table, inside in tables:
        table.update(inside)
    try:
        yield
    finally:
        for (table, inside), known in zip(tables, before):
            inside.update({key: value for key, value in table.items() if key not in known})
            table.clear()
            table.update(known)


def execute(block: Block, page: Path, namespace: dict[str, Any]) -> None:
    code = compile("\n" * block.line + block.text, str(page), "exec")
    exec(code, namespace)


def command(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """A `hasten` command runs as typed; of `make` the target must exist, of `pip` and `git` nothing is asked."""
    if words[0] == "make":
        assert set(words[1:]) <= TARGETS, f"no such target: {words}"
    elif words[0] == "hasten":
        with registered({}, {}), pytest.raises(SystemExit) as ended:
            cli.main(words[1:])
        shown = capsys.readouterr()
        assert ended.value.code == 0, f"{words}\n{shown.out}\n{shown.err}"
        assert shown.out.strip(), f"{words} printed nothing"
    else:
        assert words[0] in ("pip", "git", "cd"), f"a command that no test knows: {words}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_examples_of_page_run(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "cores", lambda: 1)  # starting workers takes most of the time here
    module = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", module)
    entries: dict[str, Any] = {}
    claims: dict[str, Any] = {}
    for block in blocks(page):
        if block.title:
            Path(block.title).write_text(block.text, encoding="utf-8")
        if block.language == "python":
            with registered(entries, claims):
                execute(block, page, module.__dict__)
        elif block.language in SHELL:
            for words in block.commands():
                command(words, capsys)


def test_files_are_as_short_as_their_page_says() -> None:
    promised = {"mine.py": 20, "heavy_ball.py": 30}
    shown = {block.title: block.text for page in PAGES for block in blocks(page) if block.title in promised}
    assert shown.keys() == promised.keys()
    for name, text in shown.items():
        lines = [line for line in text.splitlines() if line.strip()]
        assert len(lines) <= promised[name], f"{name} has {len(lines)} lines that are not empty"


def test_readme_example_has_ten_lines() -> None:
    readme = next(page for page in PAGES if page.name == "README.md")
    (block,) = (block for block in blocks(readme) if block.language == "python")
    assert len([line for line in block.text.splitlines() if line.strip()]) <= 10
