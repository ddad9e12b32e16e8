"""The table "error against evaluations": who is in it, how it is measured and shown, and that it is up to date."""

from __future__ import annotations

import importlib.util
import math
import sys
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from pages import DOCS

import hasten


@pytest.fixture(scope="module")
def table() -> Any:
    spec = importlib.util.spec_from_file_location("nfe_table", DOCS / "nfe_table.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules["nfe_table"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def summary() -> dict[str, Any]:
    def row(*errors: float | None, random: bool = False, **hyper: Any) -> dict[str, Any]:
        return {"errors": list(errors), "hyper": hyper, "random": random}

    rows = {
        "diffusion.ddim": row(0.4, 0.2, 0.1, 0.05),
        "diffusion.deis": row(None, 0.1, 0.01, 0.001, grid="uniform"),
        "diffusion.bdia": row(None, None, None, None),
        "diffusion.ddpm": row(0.05, 0.04, 0.03, 0.02, random=True),
    }
    return {
        "nfe": [5, 10, 20, 40],
        "seeds": 3,
        "trials": 8,
        "tuned_at": 10,
        "machine": {"processor": "Test 9000", "torch": "2.13.0"},
        "problems": {"a <b>": {"problem": "first", "floor": 0.21, "rows": rows}},
    }


def test_every_sampler_of_the_library_that_needs_only_a_network_is_measured(table: Any) -> None:
    names = {card.name for card in table.contenders()}
    assert {"ddim", "ddpm", "dpm-solver-3", "dpmpp-2m", "deis", "dualfast", "conjugate", "bdia", "paradigms"} <= names
    assert not {"cfg", "fora", "shortest-path", "splitting"} & names


def test_an_error_is_that_of_a_race_at_this_number_of_evaluations(table: Any) -> None:
    problem = hasten.problem("gaussian-mixture-score", batch=32)
    ddim, ddpm, three = (hasten.get(f"diffusion.{name}") for name in ("ddim", "ddpm", "dpm-solver-3"))
    errors = [table._error(problem, ddim, {"grid": "uniform"}, nfe, 0) for nfe in (10, 20)]
    trace = hasten.run(ddim.make(grid="uniform"), problem, target=-math.inf, budget="96calls")
    assert trace.metric[trace.calls["nfe"].index(12)] < errors[0]
    assert errors[0] / errors[1] == pytest.approx(2.0, rel=0.2)
    assert table._error(problem, three, {}, 2, 0) == math.inf
    assert table._error(problem, ddpm, {}, 20, 0) == table._error(problem, ddpm, {}, 20, 0) < 1.0


def test_measures_again_only_what_has_changed(table: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    cards = [hasten.get("diffusion.ddim"), hasten.get("diffusion.ddpm")]
    monkeypatch.setattr(table, "PROBLEMS", {"small": ("gaussian-mixture-score", {"batch": 8})})
    monkeypatch.setattr(table, "contenders", lambda: cards)
    monkeypatch.setattr(table, "TRIALS", 1)
    first = table.measure()
    assert table.is_random(cards[1])
    assert [row["random"] for row in first["problems"]["small"]["rows"].values()] == [False, True]
    first["problems"]["small"]["rows"]["diffusion.ddim"]["errors"] = [4.0, 3.0, 2.0, 1.0]
    first["problems"]["small"]["rows"]["diffusion.ddpm"]["key"] = "older"
    again = table.measure(first)["problems"]["small"]["rows"]
    assert again["diffusion.ddim"]["errors"] == [4.0, 3.0, 2.0, 1.0]
    assert len(again["diffusion.ddpm"]["errors"]) == 4
    assert table.section({**first, "trials": 1})


def test_shows_the_best_first_noise_last_and_failures_as_dashes(table: Any, summary: dict[str, Any]) -> None:
    text = table.section(summary)
    rows = [line for line in text.splitlines() if line.startswith(("| [", "| *["))]
    assert [row.partition("[")[2].partition("]")[0] for row in rows] == ["deis", "ddim", "bdia", "ddpm"]
    assert "| – | **0.1** | **0.01** | **0.001** | grid=uniform |" in rows[0]
    assert "| **0.4** | 0.2 | 0.1 | 0.05 | defaults |" in rows[1]
    assert "| – | – | – | – |" in rows[2]
    assert "0.05 | 0.04" in rows[3]
    assert "Two batches of exact samples are 0.21 apart" in text


def test_the_picture_is_whole_and_its_lines_fall(table: Any, summary: dict[str, Any]) -> None:
    drawn = ElementTree.fromstring(table.picture(summary))
    space = "{http://www.w3.org/2000/svg}"
    paths = [[float(x) for x in path.get("d")[1:].replace("L", "").split()] for path in drawn.iter(f"{space}path")]
    assert [len(path) // 2 for path in paths] == [3, 4]
    for path in paths:
        assert path[0::2] == sorted(path[0::2])
        assert path[1::2] == sorted(path[1::2])
    texts = [text.text for text in drawn.iter(f"{space}text")]
    assert "a <b>" in texts
    assert {"ddim", "deis", "all others"} <= set(texts)


def test_what_is_committed_is_up_to_date(table: Any) -> None:
    measured = table.load()
    assert measured
    assert table.PICTURE.read_text(encoding="utf-8") == table.picture(measured)
    assert table.section(measured) in (DOCS / "evidence.md").read_text(encoding="utf-8")
    assert set(measured["problems"]) == set(table.PROBLEMS)
    names = {card.id for card in table.contenders()}
    for facts in measured["problems"].values():
        assert set(facts["rows"]) == names, "run `python docs/nfe_table.py --measure`"
