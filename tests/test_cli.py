"""The command line, as a user types it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hasten import cli

OWN = Path(__file__).parent / "core" / "own.py"


def hasten(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of one command."""
    try:
        cli.main([str(argument) for argument in arguments])
        status = 0
    except SystemExit as stop:
        status = int(stop.code or 0)
    told = capsys.readouterr()
    return status, re.sub(r"\s+", " ", told.out), re.sub(r"\s+", " ", told.err)


@pytest.fixture(autouse=True)
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    for console in (cli.out, cli.err):
        monkeypatch.setattr(console, "_width", 200)


def test_a_race_ends_in_a_table_a_sentence_the_code_and_a_report(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    report = tmp_path / "r.html"
    options = ["--seeds", 3, "--trials", 3, "--engine", "inline", "--store", tmp_path / "r.db", "--report", report]
    status, out, err = hasten(capsys, "race", "digits-mlp", "adamw", "adopt", "--baseline", "adamw", *options)
    assert status == 0, err
    assert "adopt" in out
    assert "adamw" in out
    assert "90 %" in out
    assert "To use the winner" in out
    assert "model.parameters()" in out
    assert report.read_text().lstrip().lower().startswith("<!doctype html>")
    assert str(report) in out
    assert "racing: 6 runs" in err


def test_a_race_of_the_users_own_file(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    options = ["--seeds", 2, "--trials", 1, "--engine", "inline", "--store", tmp_path / "r.db"]
    status, out, err = hasten(capsys, "race", OWN, "good", "lies", *options)
    assert status == 0, err
    assert "good" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["race", "digits-mlp", "adopd"], "Did you mean adopt"),
        (["race", "digit-mlp"], "Did you mean digits-mlp"),
        (["race", "quadratic", "adamw", "--budget", "-3"], "budget must be a positive number"),
        (["race", "quadratic", "adamw", "--target", "nan"], "target must be a real number"),
        (["race", "absent.py"], "no such file: "),
        (["race", "quadratic", "adamw", "--report", "/dev/null/r.html"], "/dev/null/r.html"),
        (["show", "adoptt"], "Did you mean adopt"),
        (["list", "optm"], "Did you mean optim"),
        (["claims", "optim.adopt/x"], "unknown claim"),
    ],
)
def test_what_is_wrong_is_said_in_one_message(
    arguments: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    status, out, err = hasten(capsys, *arguments)
    assert status == 2
    assert message in err
    assert "Traceback" not in out + err


def test_usage_errors_are_short(capsys: pytest.CaptureFixture[str]) -> None:
    status, _, err = hasten(capsys, "race", "--seeds", "many")
    assert status == 2
    assert "--seeds" in err


def test_list_shows_methods_families_kinds_and_problems(capsys: pytest.CaptureFixture[str]) -> None:
    _, everything, _ = hasten(capsys, "list")
    assert "optim.adopt" in everything
    assert "diffusion." in everything
    _, optim, _ = hasten(capsys, "list", "optim")
    assert "optim.adopt" in optim
    assert "diffusion." not in optim
    _, saddle, _ = hasten(capsys, "list", "saddle")
    assert "extragradient" in saddle
    assert "optim.adopt" not in saddle
    _, problems, _ = hasten(capsys, "list", "problems")
    for name in ("digits-mlp", "stdlib-lm", "bilinear-game", "gaussian-mixture-score", "hetero-quadratic"):
        assert name in problems


def test_show_has_the_card_the_evidence_and_the_code(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = hasten(capsys, "show", "adopt")
    assert status == 0
    for part in ("2411.02853", "Taniguchi", "How to use it", "ADOPT(", "Evidence", "tunes lr"):
        assert part in out


def test_claims_are_listed_with_their_verdicts(capsys: pytest.CaptureFixture[str]) -> None:
    status, out, _ = hasten(capsys, "claims", "adopt")
    assert status == 0
    assert "184" in out
    assert re.search(r"\d+ (not )?(reproduced|run)", out)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("hasten show adop", "adopt"),
        ("hasten race digits-m", "digits-mlp"),
        ("hasten race digits-mlp ado", "adopt"),
        ("hasten race --preset opt", "optim-grand"),
    ],
)
def test_names_are_completed_in_the_shell(words: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from typer.testing import CliRunner

    environment = {"_HASTEN_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    result = CliRunner().invoke(cli.app, prog_name="hasten", env=environment)
    assert expected in result.output.split()
