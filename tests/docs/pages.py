"""Reads the README and the hand-written pages of `docs/`: their fenced blocks, in order."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
GENERATED = {DOCS / "evidence.md"}
PAGES = sorted([ROOT / "README.md", *(page for page in DOCS.glob("*.md") if page not in GENERATED)])
_FENCE = re.compile(r"^```(?P<language>\w+)(?P<options>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        language: `python`, `console`, `bash`, `text`.
        title: the file that it shows, if it is one.
        text: what is inside.
        line: where it begins, counted from 1.
    """

    language: str
    title: str
    text: str
    line: int

    def commands(self) -> Iterator[list[str]]:
        """The commands of a shell block, without prompt and comment."""
        for line in self.text.splitlines():
            if line.startswith("$ ") or (self.language == "bash" and line.strip()):
                words = shlex.split(line.removeprefix("$ "), comments=True)
                if words:
                    yield words


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page."""
    text = page.read_text(encoding="utf-8")
    found = []
    for match in _FENCE.finditer(text):
        title = re.search(r'title="([^"]+)"', match["options"])
        line = text.count("\n", 0, match.start()) + 1
        found.append(Block(match["language"], title[1] if title else "", match["text"], line))
    return found
