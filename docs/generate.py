"""Writes the pages that come from cards and evidence; `--check` says whether the committed ones are up to date.

Committed: the table in `README.md`, the grand race on the front page, `docs/optimizers.md` and `docs/evidence.md`. Made
for each build: `docs/methods/`.
"""

from __future__ import annotations

import argparse
import html
import inspect
import re
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hasten
from hasten.core.card import Card, Choice, Range
from hasten.core.catalogue import problems
from hasten.core.claim import Claim
from hasten.core.registry import families

DOCS = Path(__file__).resolve().parent
# MkDocs loads this file as a hook, without its folder.
sys.path.insert(0, str(DOCS))

import grand_race  # noqa: E402
import nfe_table  # noqa: E402
import which_optimizer  # noqa: E402

INDEX = DOCS / "index.md"
README = DOCS.parent / "README.md"
EVIDENCE = DOCS / "evidence.md"
METHODS = DOCS / "methods"
OPEN, CLOSE = "<!-- evidence -->", "<!-- /evidence -->"
RACE = "<!-- grand race -->", "<!-- /grand race -->"
NOT_RUN = "Not run yet: "
COLUMNS = ("paper", "claim", "what was measured", "ratio", "expected", "verdict", "machine")
FAMILIES = {
    "optim": "Training: optimizers and what works beside them",
    "solve": "Explicit problems: minimising, games, transport, registration",
    "diffusion": "Sampling from diffusion and flow models",
    "distributed": "Training over many workers or clients",
}


def cell(text: object) -> str:
    """Text as one table cell, outside of code spans without any markup of its own."""
    parts = re.split(r"(`[^`]+`)", " ".join(str(text).split()))
    for index in range(0, len(parts), 2):
        plain = re.sub(r"([\\*_`|])", r"\\\1", html.escape(parts[index], quote=False))
        parts[index] = plain.replace("~", "&#126;").replace("$", "&#36;")
    for index in range(1, len(parts), 2):
        parts[index] = parts[index].replace("|", r"\|")
    return "".join(parts)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table of finished cells."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def figure(value: float) -> str:
    """A measured number, four digits."""
    return f"{value:.4g}"


def paper(card: Card) -> str:
    """First author and year, linked to arXiv where the paper is there."""
    names = [name.strip() for name in re.split(r",|;|&| and |et al\.?", card.authors) if name.strip()]
    last = [name.split()[-1] for name in names]
    several = len(names) > 2 or "et al" in card.authors
    text = cell(f"{f'{last[0]} et al.' if several else ' & '.join(last)} {card.year}")
    return f"[{text}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else text


def machine(facts: Mapping[str, str]) -> str:
    """A machine in words."""
    parts = [facts.get("processor", ""), f"{facts.get('cores', '?')} cores", facts.get("accelerator", "")]
    parts += [facts.get("system", ""), f"Python {facts.get('python', '?')}", f"torch {facts.get('torch', '?')}"]
    return ", ".join(part for part in parts if part)


class Machines:
    """Letters for the machines that figures come from."""

    def __init__(self, claims: Iterable[Claim]) -> None:
        self.letters: dict[str, str] = {}
        for made in claims:
            if made.evidence is not None:
                self.letters.setdefault(machine(made.evidence.machine), chr(ord("A") + len(self.letters) % 26))

    def letter(self, made: Claim) -> str:
        """The letter of a claim's machine; empty if it was never run."""
        return self.letters[machine(made.evidence.machine)] if made.evidence else ""

    def legend(self) -> str:
        """What the letters mean."""
        return "  \n".join(f"Machine {letter}: {cell(text)}" for text, letter in self.letters.items())


def row(made: Claim, machines: Machines) -> list[str]:
    """A measured claim, in the order of `COLUMNS`."""
    seeds = f"{made.aggregate} of {len(made.seeds)} seeds" if len(made.seeds) > 1 else "one seed"
    verdict = made.verdict if made.verdict == "reproduced" else f"**{made.verdict}**"
    return [
        paper(hasten.get(made.method)),
        f"{cell(made.statement)}<br>`{made.id}`",
        f"{cell(made.quantity)} ({seeds}); baseline: {cell(made.baseline)}",
        figure(made.measured if made.measured is not None else float("nan")),
        cell(made.expectation),
        verdict,
        machines.letter(made),
    ]


def tally(claims: Iterable[Claim]) -> str:
    """How many were reproduced, of how many that were measured; empty if none was."""
    measured = [made for made in claims if made.measured is not None]
    if not measured:
        return ""
    held = sum(made.verdict == "reproduced" for made in measured)
    return f"{held} of {len(measured)}"


def not_run(claims: Iterable[Claim]) -> str:
    """The claims without evidence, on one line of their own; empty if there are none."""
    names = [f"`{made.id}`" for made in claims if made.measured is None]
    return f"{NOT_RUN}{', '.join(names)}." if names else ""


def join(*blocks: str) -> str:
    """Blocks with an empty line between them."""
    return "\n\n".join(block for block in blocks if block)


def in_order(claims: Iterable[Claim]) -> list[Claim]:
    """Claims method by method, as their authors wrote them down: the main one first."""
    return sorted(claims, key=lambda made: (made.method, inspect.getsourcelines(made.function)[1]))


def headlines(claims: Sequence[Claim]) -> str:
    """The table of the README: each paper's first claim, and how many of all its claims were reproduced."""
    papers: dict[Any, list[Claim]] = {}
    for made in in_order(claims):
        if made.measured is not None:
            papers.setdefault(made.paper_id or made.method, []).append(made)
    machines = Machines(own[0] for own in papers.values())
    rows = [[*row(own[0], machines), tally(own)] for own in papers.values()]
    measured = [made for made in claims if made.measured is not None]
    left = len(claims) - len(measured)
    waiting = f"{NOT_RUN}{left} claims; `hasten claims` lists them." if left else ""
    if not measured:
        return join("No claim has been measured yet.", waiting)
    summary = (
        f"{tally(measured)} claims from {len(papers)} papers were reproduced. Below is the first claim of each paper; "
        "all of them, with notes, are in [docs/evidence.md](docs/evidence.md)."
    )
    return join(summary, table((*COLUMNS, "paper's claims"), rows), machines.legend(), waiting)


def evidence_page(claims: Sequence[Claim]) -> str:
    """The page with every claim."""
    machines = Machines(in_order(claims))
    blocks = [
        "# Evidence",
        "Every claim of every paper in the library, measured by this library. Generated from `hasten/evidence/`; "
        "[how claims are made and judged](claims.md). `hasten claims` prints this table, "
        "`hasten claims METHOD --run` measures again on your machine.",
        f"Reproduced: {tally(claims)} that were measured." if machines.letters else "No claim has been measured yet.",
        machines.legend(),
    ]
    for family in families():
        own = in_order(m for m in claims if m.method.startswith(f"{family}.") and m.measured is not None)
        if own:
            blocks += [f"## {FAMILIES.get(family, family)}", table(COLUMNS, [row(made, machines) for made in own])]
            blocks.append("\n".join(f"- `{made.id}`: {cell(made.note)}" for made in own if made.note))
    measured = nfe_table.load()
    return join(*blocks, nfe_table.section(measured) if measured else "", not_run(in_order(claims))) + "\n"


def span(values: Range) -> str:
    """A search range in words."""
    if isinstance(values, Choice):
        return ", ".join(f"`{option!r}`" for option in values.options)
    return f"{values.low:g} to {values.high:g}{', log scale' if values.log else ''}"


def facts_table(facts: Sequence[tuple[str, str]]) -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    """Head and rows of a table of facts, the first of them as its head; empty ones are left out."""
    first, *rest = (fact for fact in facts if fact[1])
    return first, rest


def method_page(card: Card, claims: Sequence[Claim]) -> str:
    """A method: its card, its evidence, its reference."""
    source = f"{cell(card.authors)} ({card.year})"
    source += f", [arXiv {card.arxiv}](https://arxiv.org/abs/{card.arxiv})" if card.arxiv else ""
    needs = f", if they offer {', '.join(card.needs)}" if card.needs else ""
    facts = [
        ("paper", f"{cell(card.title)}. {source}"),
        ("cost", cell(card.cost)),
        ("prefer it", cell(card.when)),
        ("races on", f"{', '.join(card.kinds)} problems{needs}"),
    ]
    facts += [(f"tunes `{name}`", span(values)) for name, values in card.search_space.items()]
    blocks = [
        f"# {cell(card.name)}",
        cell(card.summary),
        table(*facts_table(facts)),
        "## Use",
        f"```python\n{card.code()}\n```",
        f"```console\n$ hasten show {card.id}\n```",
        "## Evidence",
    ]
    if not claims:
        blocks.append("No claim is made for it: it is a baseline." if card.paper_id is None else "No claim yet.")
    for made in in_order(claims):
        found = f"{figure(made.measured)}, {made.verdict}" if made.measured is not None else "not run"
        stale = "" if made.measured is None or made.current else " (the code has changed since)"
        facts = [
            ("measured", f"{found}{stale}"),
            ("expected", f"{cell(made.quantity)} {cell(made.expectation)}"),
            ("baseline", cell(made.baseline)),
            ("seeds", f"{made.aggregate} of {', '.join(map(str, made.seeds))}"),
            ("machine", cell(machine(made.evidence.machine)) if made.evidence else ""),
            ("note", cell(made.note)),
        ]
        blocks += [f"### {cell(made.name)}", cell(made.statement), table(*facts_table(facts))]
    blocks += ["## Reference", reference(card)]
    return join(*blocks) + "\n"


def reference(card: Card) -> str:
    """Signature and docstring of what users hold."""
    target = card.load()
    module, name = getattr(target, "__module__", ""), getattr(target, "__name__", card.name)
    try:
        signature = str(inspect.signature(target))
    except (TypeError, ValueError):
        signature = "(...)"
    text = f"{name}{signature}\n\n{inspect.getdoc(target) or ''}".rstrip()
    return join(f"`{module}.{name}`", f"```text\n{text}\n```")


def index_page(cards: Sequence[Card], claims: Sequence[Claim]) -> str:
    """All methods, family by family, with what each is preferred for."""
    blocks = [
        "# Methods",
        f"{len(cards)} methods. `hasten list` prints them, `hasten list train` those for one kind of problem.",
    ]
    for family in families():
        own = [card for card in cards if card.family == family]
        rows = []
        for card in own:
            made = [entry for entry in claims if entry.method == card.id]
            link = f"[{cell(card.name)}]({card.family}/{card.name}.md)"
            rows.append([link, cell(card.summary), cell(card.when), tally(made), paper(card)])
        if own:
            columns = ("method", "what it does", "when to prefer it", "claims reproduced", "paper")
            blocks += [f"## {FAMILIES.get(family, family)}", table(columns, rows)]
    ready = [[f"`{entry.name}`", entry.kind, cell(entry.summary)] for entry in problems()]
    blocks += ["## Ready problems", table(("problem", "kind", "what it is"), ready)]
    return join(*blocks) + "\n"


def readme(text: str, claims: Sequence[Claim]) -> str:
    """The README with its table renewed."""
    return between(text, OPEN, CLOSE, headlines(claims))


def front_page(text: str) -> str:
    """The front page with its grand race renewed."""
    summary = grand_race.load()
    return between(text, *RACE, grand_race.section(summary) if summary else "It has not been run yet.")


def between(text: str, opening: str, closing: str, content: str) -> str:
    """A page with what stands between two marks replaced."""
    head, found, rest = text.partition(opening)
    _, end, tail = rest.partition(closing)
    if not found or not end:
        raise SystemExit(f"the page must hold {opening} and {closing}")
    return f"{head}{opening}\n\n{content}\n\n{closing}{tail}"


def settled(text: str) -> str:
    """A page without its lines about claims that were not run: they alone make no page out of date."""
    return join(*(block.rstrip() for block in text.split("\n\n") if not block.startswith(NOT_RUN)))


def stale() -> list[str]:
    """Committed pages that do not show the present evidence."""
    new = renewed(hasten.claims())
    old = {path: path.read_text(encoding="utf-8") if path.is_file() else "" for path in new}
    return [path.name for path in old if settled(old[path]) != settled(new[path])]


def renewed(claims: Sequence[Claim]) -> dict[Path, str]:
    """The committed pages as they should be."""
    return {
        README: readme(README.read_text(encoding="utf-8"), claims),
        INDEX: front_page(INDEX.read_text(encoding="utf-8")),
        EVIDENCE: evidence_page(claims),
        which_optimizer.PAGE: which_optimizer.page(claims, grand_race.load()),
    }


def write() -> None:
    """Write every generated page."""
    claims, cards = hasten.claims(), hasten.methods()
    for path, text in renewed(claims).items():
        path.write_text(text, encoding="utf-8")
    shutil.rmtree(METHODS, ignore_errors=True)
    METHODS.mkdir()
    (METHODS / "index.md").write_text(index_page(cards, claims), encoding="utf-8")
    for card in cards:
        path = METHODS / card.family / f"{card.name}.md"
        path.parent.mkdir(exist_ok=True)
        own = [made for made in claims if made.method == card.id]
        path.write_text(method_page(card, own), encoding="utf-8")


def on_config(config: Any) -> Any:
    """MkDocs hook: put the method pages below `Methods`."""
    if not METHODS.is_dir():
        write()
    sections: list[Any] = ["methods/index.md"]
    for family in sorted(path for path in METHODS.iterdir() if path.is_dir()):
        pages = [{page.stem: f"methods/{family.name}/{page.name}"} for page in sorted(family.glob("*.md"))]
        sections.append({family.name: pages})
    config.nav = [{"Methods": sections} if entry == {"Methods": "methods/index.md"} else entry for entry in config.nav]
    return config


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a committed page is out of date")
    if parser.parse_args().check:
        if names := stale():
            sys.exit(f"out of date: {', '.join(names)}; run `python docs/generate.py`")
    else:
        write()


if __name__ == "__main__":
    main()
