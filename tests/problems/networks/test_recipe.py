"""Training of small networks and the cache of their weights."""

from __future__ import annotations

import multiprocessing
import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import DataError, DivergedError, UnknownNameError
from hasten.problems.networks import cached_file, network, recipe, recipes, train
from hasten.problems.networks.recipe import Report, _loaded, _recipes, fit

CALLS: list[int] = []


def _toy(model: nn.Module, report: Report) -> float:
    CALLS.append(1)

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        x = torch.randn(32, 3, generator=generator)
        return (model(x) - x.sum(1, keepdim=True)).square().mean()

    return fit(model, loss, report, steps=300, lr=0.05, weight_decay=0.0, ema=0.9)


def _broken(model: nn.Module, report: Report) -> float:
    return fit(model, lambda model, generator: model(torch.full((1, 3), torch.inf)).sum(), report, steps=3)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HASTEN_CACHE", str(tmp_path))
    recipe("toy", lambda: nn.Linear(3, 1), summary="sum of three numbers")(_toy)
    recipe("broken", lambda: nn.Linear(3, 1), summary="diverges")(_broken)
    CALLS.clear()
    _loaded.cache_clear()
    yield tmp_path  # type: ignore[misc]
    for name in ("toy", "broken"):
        _recipes.pop(name)
    _loaded.cache_clear()


def test_a_network_is_trained_once_and_kept(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = network("toy")
    assert re.search(r"training the network toy once.*networks", capsys.readouterr().err)
    assert torch.allclose(net(torch.tensor([[1.0, 2.0, 3.0]])), torch.tensor([[6.0]]), atol=0.05)
    assert not net.training
    assert not any(parameter.requires_grad for parameter in net.parameters())
    _loaded.cache_clear()
    again = network("toy")
    assert len(CALLS) == 1
    assert all(torch.equal(a, b) for a, b in zip(net.parameters(), again.parameters()))


def test_every_call_has_a_copy_of_its_own(cache: Path) -> None:
    first = network("toy")
    next(iter(first.parameters())).data.zero_()
    assert next(iter(network("toy").parameters())).abs().sum() > 0


def test_forced_training_replaces_the_weights(cache: Path) -> None:
    path = train("toy")
    train("toy")
    assert len(CALLS) == 1
    assert train("toy", force=True) == path
    assert len(CALLS) == 2


def test_progress_is_reported(cache: Path) -> None:
    seen: list[tuple[int, int]] = []
    train("toy", lambda step, steps, loss: seen.append((step, steps)))
    assert seen[0] == (1, 300)
    assert seen[-1] == (300, 300)


def test_a_diverging_training_leaves_nothing(cache: Path) -> None:
    with pytest.raises(DivergedError, match="step 1 of 3"):
        train("broken")
    assert not [path for path in cache.rglob("*") if path.suffix in {".part", ".safetensors"}]


def test_damaged_weights_are_named(cache: Path) -> None:
    path = cached_file("toy")
    path.parent.mkdir()
    path.write_bytes(b"no weights")
    with pytest.raises(DataError, match=r"weights of toy .* delete the file and retry"):
        network("toy")


def test_a_cache_that_cannot_be_written_is_named(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (cache / "file").write_text("")
    monkeypatch.setenv("HASTEN_CACHE", str(cache / "file"))
    with pytest.raises(DataError, match="set HASTEN_CACHE to a folder that can be written"):
        train("toy")


def test_another_version_or_shape_has_another_file(cache: Path) -> None:
    first = cached_file("toy")
    recipe("toy", lambda: nn.Linear(3, 1), summary="", version=2)(_toy)
    second = cached_file("toy")
    recipe("toy", lambda: nn.Linear(3, 2), summary="")(_toy)
    assert len({first, second, cached_file("toy")}) == 3


def _ask() -> None:
    train("toy", force=False)


def test_processes_that_ask_at_once_train_once(cache: Path) -> None:
    context = multiprocessing.get_context("fork")
    marks = cache / "marks"
    marks.mkdir()

    def marked(model: nn.Module, report: Report) -> float:
        (marks / str(multiprocessing.current_process().pid)).touch()
        return _toy(model, report)

    recipe("toy", lambda: nn.Linear(3, 1), summary="")(marked)
    workers = [context.Process(target=_ask) for _ in range(3)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
    assert len(list(marks.iterdir())) == 1


def test_an_unknown_network_brings_the_nearest_name() -> None:
    with pytest.raises(UnknownNameError, match="digits-diffusion"):
        network("digits-difusion")


@pytest.mark.parametrize("name", [entry.name for entry in recipes()])
def test_fresh_networks_are_always_the_same(name: str) -> None:
    before = torch.random.get_rng_state()
    entry = next(entry for entry in recipes() if entry.name == name)
    first, second = entry.fresh().state_dict(), entry.fresh().state_dict()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(before, torch.random.get_rng_state())
