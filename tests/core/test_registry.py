"""The registry: cards, names, and what it says when a name is wrong."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace

import pytest

import hasten
from hasten.core import registry
from hasten.core.card import Card, Real
from hasten.core.errors import HastenError, InputError, UnknownNameError

CARD = Card(
    name="walk",
    family="zoo",
    title="A Walk",
    authors="Nobody",
    year=1999,
    summary="Walks.",
    cost="shoes",
    when="the weather is fine",
    kinds=("minimise",),
    use="walk(model{hyper})",
    arxiv="9901.00001",
)


def test_cards_come_by_full_and_by_short_name() -> None:
    assert hasten.get("optim.adamw") is hasten.get("adamw")
    assert hasten.get("optim.adopt").paper_id == 184
    assert hasten.get("optim.adopt").id == "optim.adopt"


def test_methods_are_sorted_and_of_the_family() -> None:
    cards = hasten.methods("optim")
    assert {card.family for card in cards} == {"optim"}
    assert [card.name for card in cards] == sorted(card.name for card in cards)
    assert {card.id for card in cards} < {card.id for card in hasten.methods()}


@pytest.mark.parametrize("name", ["optim.adop", "adop", "ADOPT"])
def test_an_unknown_method_brings_the_nearest_names(name: str) -> None:
    with pytest.raises(UnknownNameError, match=r"Did you mean.*adopt"):
        hasten.get(name)


def test_an_unknown_family_lists_the_families() -> None:
    with pytest.raises(UnknownNameError, match=r"unknown family 'optm'. Did you mean optim\?.*diffusion"):
        hasten.methods("optm")


def test_a_name_belongs_to_one_method() -> None:
    hasten.register(CARD)(type("Walk", (), {}))
    other = type("Run", (), {"__module__": "elsewhere"})
    with pytest.raises(InputError, match=r"'zoo.walk' is taken"):
        hasten.register(CARD)(other)
    assert "zoo" in registry.families()


def test_code_carries_the_tuned_hyper_parameters() -> None:
    assert CARD.code() == "walk(model)"
    assert CARD.code({"lr": 0.00123456, "kind": "slow"}) == "walk(model, lr=0.001235, kind='slow')"
    assert CARD.source == "Nobody (1999), arXiv 9901.00001"


@pytest.mark.parametrize("attribute", ["title", "summary", "cost", "when", "use"])
def test_a_card_is_complete(attribute: str) -> None:
    with pytest.raises(InputError, match=attribute):
        replace(CARD, **{attribute: ""})


def test_an_empty_range_is_refused() -> None:
    with pytest.raises(InputError, match="search range"):
        Real(1.0, 1.0)
    with pytest.raises(InputError, match="log scale"):
        Real(0.0, 1.0, log=True)


def test_importing_hasten_is_quick_and_loads_no_torch() -> None:
    code = "import sys, time; t = time.perf_counter(); import hasten; dt = time.perf_counter() - t; "
    code += "print(dt, 'torch' in sys.modules, 'numpy' in sys.modules)"
    runs = [subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout for _ in range(3)]
    assert all(run.split()[1:] == ["False", "False"] for run in runs)
    assert min(float(run.split()[0]) for run in runs) < 0.3


def test_public_names_resolve() -> None:
    for name in hasten.__all__:
        assert getattr(hasten, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        hasten.nonsense  # noqa: B018
    assert issubclass(UnknownNameError, HastenError)
