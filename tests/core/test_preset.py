"""Races under a name."""

from __future__ import annotations

import pytest
from torch.optim import Optimizer
from typer.testing import CliRunner

import hasten
from hasten.cli import app
from hasten.core.errors import UnknownNameError
from hasten.core.preset import get, presets
from hasten.optim.wrapper import OptimizerWrapper


@pytest.mark.parametrize("entry", presets(), ids=lambda entry: entry.name)
def test_everything_it_names_exists_and_fits(entry) -> None:
    problems = [hasten.problem(name) for name in entry.problems]
    cards = [hasten.get(name) for name in entry.methods()]
    assert len({problem.name for problem in problems}) == len(problems)
    assert cards
    for problem in problems:
        assert all(problem.kind in card.kinds for card in cards)


def test_the_grand_race_has_every_stand_alone_optimizer() -> None:
    names = set(get("optim-grand").methods())
    for card in hasten.methods("optim"):
        target = card.load()
        alone = isinstance(target, type) and issubclass(target, Optimizer) and not issubclass(target, OptimizerWrapper)
        assert (card.id in names) == alone
    assert get("optim-grand").options["baseline"] == "optim.adamw"


def test_unknown_names_are_refused_with_those_there_are() -> None:
    with pytest.raises(UnknownNameError, match="optim-grand"):
        get("optim-grant")


def test_own_options_go_before_those_of_the_preset(tmp_path, monkeypatch) -> None:
    from hasten.core import preset

    monkeypatch.setitem(
        preset._presets,
        "small",
        preset.Preset("small", "for this test", ("quadratic",), lambda: ["optim.adamw", "optim.sgd"], {"seeds": 3}),
    )
    result = get("small").race(seeds=1, trials=1, budget=5, engine="inline", store=tmp_path / "results.db")
    assert len(result.runs) == 2


def test_the_command_lists_presets_and_refuses_a_second_problem() -> None:
    listed = CliRunner().invoke(app, ["list", "presets"])
    assert "optim-grand" in listed.output
    refused = CliRunner().invoke(app, ["race", "digits-mlp", "--preset", "optim-grand"])
    assert refused.exit_code != 0
    assert "leave out 'digits-mlp'" in str(refused.exception)
