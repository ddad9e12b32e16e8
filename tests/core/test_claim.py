"""Claims: fixed before they run, able to fail, recorded as measured."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

import hasten
from hasten.core import claim as module
from hasten.core.claim import Claim, claim, write
from hasten.core.errors import InputError, UnknownNameError
from hasten.core.measure import measure


@pytest.fixture
def evidence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setattr(module, "EVIDENCE", tmp_path)
    monkeypatch.setattr(module, "_claims", {})
    return tmp_path


def make(threshold: float | tuple[float, float] = 0.5, relation: str = "<=", aggregate: str = "median") -> Claim:
    @claim(
        method="optim.adamw",
        baseline="none",
        statement="The seed, divided by four, is small.",
        quantity="seed / 4",
        threshold=threshold,
        relation=relation,
        aggregate=aggregate,
        seeds=(1, 2, 3),
    )
    def quarter(seed: int) -> float:
        return seed / 4

    return quarter


def test_verdicts(evidence: Path) -> None:
    assert make(0.5).measure().verdict == "reproduced"
    assert make(0.49).measure().verdict == "not reproduced"
    assert make(0.6, ">=").measure().verdict == "not reproduced"
    assert make((0.4, 0.6), "in").measure().verdict == "reproduced"
    assert make(0.5, aggregate="max").measure().measured == 0.75
    assert make(0.5).measure().per_seed == (0.25, 0.5, 0.75)
    assert make(0.5).run(3) == 0.75


def test_nan_never_counts_as_reproduced(evidence: Path) -> None:
    @claim(method="optim.adamw", baseline="none", statement="s", quantity="q", threshold=1.0, seeds=(0, 1))
    def nothing(seed: int) -> float:
        return math.nan if seed else 0.0

    assert nothing.measure().verdict == "not reproduced"


def test_evidence_is_recorded_and_goes_out_of_date_with_the_threshold(evidence: Path) -> None:
    made = make(0.5)
    assert (made.verdict, made.measured, made.current) == ("not run", None, False)
    path = write(made, made.measure())
    assert path == evidence / "optim" / "adamw.json"
    assert (made.verdict, made.measured, made.current) == ("reproduced", 0.5, True)
    assert json.loads(path.read_text())["quarter"]["machine"]["cores"]
    stricter = make(0.1)
    assert not stricter.current


def test_writing_keeps_other_claims_and_drops_those_that_are_gone(evidence: Path) -> None:
    first = make()
    path = write(first, first.measure())
    path.write_text(path.read_text().replace('"quarter"', '"gone"'))
    write(first, first.measure())
    assert set(json.loads(path.read_text())) == {"quarter"}
    assert [file.name for file in path.parent.iterdir()] == ["adamw.json"]


def test_a_threshold_must_match_its_relation(evidence: Path) -> None:
    with pytest.raises(InputError, match="threshold of relation 'in'"):
        make(0.5, "in")
    with pytest.raises(InputError, match="threshold of relation '<='"):
        make((0.1, 0.2))
    with pytest.raises(InputError, match="relation must be one of"):
        make(0.5, "<")


def test_every_registered_claim_is_well_formed() -> None:
    made = hasten.claims()
    methods = {card.id: card for card in hasten.methods()}
    assert made
    for each in made:
        assert each.method in methods, each.id
        assert methods[each.method].paper_id in (each.paper_id, None), each.id
        assert each.statement.strip().endswith("."), each.id
        assert each.quantity, each.id
        assert each.baseline, each.id
        assert each.seeds, each.id


def test_every_paper_has_a_claim() -> None:
    claimed = {made.paper_id for made in hasten.claims()}
    assert {card.paper_id for card in hasten.methods() if card.paper_id is not None} <= claimed


def test_claims_come_by_family_method_and_id() -> None:
    every = hasten.claims()
    assert {made.method.partition(".")[0] for made in hasten.claims("optim")} == {"optim"}
    assert {made.method for made in hasten.claims("adopt")} == {"optim.adopt"}
    assert hasten.claims(every[0].id) == [every[0]]
    with pytest.raises(UnknownNameError, match="unknown claim"):
        hasten.claims("optim.adopt/nonsense")


def test_recorded_evidence_belongs_to_claims_and_says_what_was_measured() -> None:
    known = {made.id: made for made in hasten.claims()}
    for file in sorted(module.EVIDENCE.rglob("*.json")):
        for name, record in json.loads(file.read_text()).items():
            made = known[f"{file.parent.name}.{file.stem}/{name}"]
            assert len(record["per_seed"]) == len(made.seeds), made.id
            assert record["verdict"] == ("reproduced" if made.holds(record["measured"]) else "not reproduced"), made.id


def test_claims_are_measured_in_processes_of_their_own() -> None:
    cheapest = [made for made in hasten.claims() if made.evidence is not None and made.evidence.seconds < 1.0][:1]
    if not cheapest:
        pytest.skip("no claim with recorded evidence takes less than a second")
    ((made, outcome),) = measure(cheapest, jobs=1)
    assert made is cheapest[0]
    assert not isinstance(outcome, str), outcome
    assert made.evidence is not None
    assert outcome.verdict == made.evidence.verdict
