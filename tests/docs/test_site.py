"""The pages hang together: navigation, links, names; the generated ones show the present evidence."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import DOCS, GENERATED, PAGES, ROOT, blocks

import hasten
from hasten.core import claim as claims_module
from hasten.core.claim import Claim, Outcome

MACHINE = {"processor": "Test 9000", "cores": "2", "system": "Linux x86_64", "python": "3.12.0", "torch": "2.13.0"}


@pytest.fixture(scope="module")
def generate() -> Any:
    spec = importlib.util.spec_from_file_location("generate", DOCS / "generate.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _targets(nav: Any) -> set[str]:
    if isinstance(nav, str):
        return {nav}
    children = nav.values() if isinstance(nav, dict) else nav
    return set().union(*(_targets(child) for child in children))


def test_navigation_lists_every_page() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert _targets(config["nav"]) == {page.name for page in DOCS.glob("*.md")} | {"methods/index.md"}


def test_site_asks_nothing_of_the_network() -> None:
    config = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    assert config["theme"]["font"] is False
    assert not {"extra_javascript", "extra_css"} & config.keys()


@pytest.mark.parametrize("page", [*PAGES, *GENERATED], ids=lambda page: page.stem)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text(encoding="utf-8")):
        path = target.partition("#")[0]
        if "://" not in target and path and not path.startswith("methods/"):
            assert (page.parent / path).exists(), f"{page.name} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_names_in_text_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for name in re.findall(r"`((?:optim|solve|diffusion|distributed)\.[a-z0-9-]+)`", text):
        hasten.get(name)
    for path in re.findall(r"`(hasten(?:\.\w+)+)`", text):
        module, _, attribute = path.rpartition(".")
        assert hasattr(importlib.import_module(module), attribute) or importlib.util.find_spec(path), path


def test_no_page_has_an_unclosed_block() -> None:
    for page in PAGES:
        fences = re.findall(r"^```", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert len(fences) == 2 * len(blocks(page)), page.name


def test_committed_pages_show_the_present_evidence(generate: Any) -> None:
    assert generate.stale() == [], "run `python docs/generate.py`"


@pytest.fixture
def evidence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Three claims of two methods, of which two have been measured; claims are made up, methods are real."""
    monkeypatch.setattr(claims_module, "EVIDENCE", tmp_path)
    names = [card.id for card in hasten.methods()][:2]

    def make(method: str, name: str, value: float | None, **options: Any) -> Claim:
        made = Claim(
            name, 7, method, "the | baseline", "Half <b>the</b> steps of x_t * y_t.", "steps, ratio", "<=", 0.5,
            lambda seed: 0.0, **options,
        )  # fmt: skip
        if value is not None:
            verdict = "reproduced" if made.holds(value) else "not reproduced"
            outcome = Outcome(value, (value,), verdict, 1.0, MACHINE, "key")
            path = tmp_path / method.replace(".", "/")
            path = path.with_name(f"{path.name}.json")
            path.parent.mkdir(exist_ok=True)
            old = json.loads(path.read_text()) if path.exists() else {}
            path.write_text(json.dumps({**old, name: vars(outcome)}))
        return made

    return [
        make(names[0], "first", 0.25),
        make(names[0], "second", 0.75, note="at another scale"),
        make(names[1], "third", None),
    ]


def test_evidence_page_shows_every_measured_claim(generate: Any, evidence: list[Claim]) -> None:
    page = generate.evidence_page(evidence)
    rows = [line for line in page.splitlines() if line.startswith("| ") and "steps, ratio" in line]
    assert len(rows) == 2
    assert "| 0.25 | &lt;= 0.5 | reproduced | A |" in rows[0]
    assert "| 0.75 | &lt;= 0.5 | **not reproduced** | A |" in rows[1]
    assert "at another scale" in page
    assert "1 of 2" in page
    assert r"the \| baseline" in rows[0]
    assert r"&lt;b&gt;the&lt;/b&gt; steps of x\_t \* y\_t" in rows[0]
    assert "Machine A: Test 9000, 2 cores" in page


def test_readme_shows_one_row_per_paper(generate: Any, evidence: list[Claim]) -> None:
    text = generate.readme(f"head\n{generate.OPEN}\nold\n{generate.CLOSE}\ntail\n", evidence)
    rows = [line for line in text.splitlines() if line.startswith("| ") and "steps, ratio" in line]
    assert len(rows) == 1
    assert rows[0].endswith("| 1 of 2 |")
    assert "old" not in text
    assert text.startswith("head\n")
    assert text.endswith("tail\n")
    assert generate.readme(text, evidence) == text


def test_only_new_evidence_makes_a_page_out_of_date(generate: Any, evidence: list[Claim]) -> None:
    measured = evidence[:2]
    for show in (generate.evidence_page, generate.headlines):
        assert generate.settled(show(evidence)) == generate.settled(show(measured))
        assert generate.settled(show(evidence)) != generate.settled(show(evidence[:1]))


def test_method_pages_are_made_for_every_method(generate: Any) -> None:
    claims, cards = hasten.claims(), hasten.methods()
    index = generate.index_page(cards, claims)
    for card in cards:
        assert f"({card.family}/{card.name}.md)" in index
        page = generate.method_page(card, [made for made in claims if made.method == card.id])
        assert card.code() in page
        assert page.count("\n## ") == 3
