"""The ready problem `gaussian-mixture-score`."""

from __future__ import annotations

import pytest
import torch

import hasten
from hasten.core.catalogue import problem
from hasten.core.errors import InputError
from hasten.core.run import run


@pytest.mark.parametrize(
    "spec", ["", ":schedule=ve", ":schedule=flow", ":schedule=edm,dim=64", ":schedule=vp-cosine", ":dim=8,components=3"]
)
def test_error_falls_with_evaluations_and_the_baseline_arrives(spec: str) -> None:
    made = problem(f"gaussian-mixture-score{spec}", batch=64)
    trace = run(hasten.get("ddim").make(), made, target=float("-inf"))
    assert trace.status == "budget", trace.message
    assert trace.metric[-1] < 0.2 * trace.metric[0]
    if not spec:
        assert trace.cost_to(made.target, by="nfe") <= 96


def test_seeds() -> None:
    made = problem("gaussian-mixture-score:batch=8")
    first, again, other = (made.build(seed).noise for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_refuses_bad_parameters() -> None:
    for spec in ("schedule=cubic", "batch=0", "components=0", "dim=0"):
        with pytest.raises(InputError):
            problem(f"gaussian-mixture-score:{spec}")
