"""The same numbers in one process and on two real ranks, and a DDP hook that averages without bias."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.multiprocessing as mp
from distributed.two_ranks import CASES, METHODS, answer, batch, network, work

from hasten.core.errors import InputError
from hasten.core.registry import methods
from hasten.distributed import DistEngine


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ranks")
    mp.spawn(work, args=(str(folder),), nprocs=2)  # type: ignore[attr-defined]
    return [torch.load(Path(folder) / f"rank{rank}.pt") for rank in range(2)]


def test_every_method_is_compared() -> None:
    assert {card.name for card in methods("distributed")} <= set(METHODS)


@pytest.mark.parametrize(("name", "problem"), CASES, ids=[f"{name} on {problem['spec']}" for name, problem in CASES])
def test_engines_agree(name: str, problem: dict[str, Any], ranks: list[dict[str, Any]]) -> None:
    x, up, gradients = answer(name, problem, False)
    found = [rank[f"{name} on {problem['spec']}"] for rank in ranks]
    assert torch.equal(found[0][0], found[1][0])
    assert float((found[0][0] - x).abs().max()) <= 1e-5
    assert found[0][1] + found[1][1] == up
    assert found[0][2] + found[1][2] == gradients


def test_hook_is_unbiased_and_equal_on_all_ranks(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["hook"] for rank in ranks)
    mean = (first["own"] + second["own"]) / 2
    assert torch.equal(first["ternary"], second["ternary"])
    draws = first["ternary"]
    error = (draws.mean(0) - mean).abs()
    rare = 12 * draws.abs().amax() / len(draws)
    assert bool((error <= 4.5 * draws.std(0) / len(draws) ** 0.5 + rare).all())
    assert float((draws.mean(0) @ mean) / mean.square().sum()) == pytest.approx(1.0, abs=0.1)
    sizes = [30, 5, 5, 1]
    scale = torch.stack([first["own"], second["own"]]).abs().amax(0).split(sizes)
    for part, own in zip(draws.split(sizes, dim=1)[:3], scale):
        assert bool(torch.isin((part / own.max()).round(decimals=4).abs(), torch.tensor([0.0, 0.5, 1.0])).all())


def test_hook_leaves_skipped_parameters_exact(ranks: list[dict[str, Any]]) -> None:
    first, second = (rank["hook"] for rank in ranks)
    assert torch.allclose(first["skipped"][0], (first["own"] + second["own"]) / 2, atol=1e-7)
    # 40 ternary entries, one raw, three scales on the all-gather and on the all-reduce; or 41 floats.
    assert first["ternary bytes"] == 10 + 4 + 3 * 4 + 3 * 4
    assert first["skipped bytes"] == 41 * 4


def test_hook_test_sees_unlike_ranks() -> None:
    assert not torch.equal(batch(0), batch(1))
    assert sum(p.numel() for p in network().parameters()) == 41


def test_ranks_need_a_process_group() -> None:
    with pytest.raises(InputError, match="init_process_group"):
        DistEngine()
