"""Grokfast's filters against the authors' code, and how they sit on an optimizer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stream import digests, parameters

from hasten.core.errors import InputError
from hasten.optim.filters.grokfast import GrokfastEMA, GrokfastMA

# Digests after 1, 2, 10, 100 steps of SGD (lr 0.01) behind grokfast.py of ironjr/grokfast at commit 93b2248, float64.
GOLDEN: list[tuple[type, dict[str, Any], list[list[float]]]] = [
    (
        GrokfastEMA,
        {},
        [
            [-0.6419828894106194, -13.655574497988798],
            [-0.652608261562434, -13.510349447227702],
            [-0.7183580988101693, -13.01756559636576],
            [-1.039574996703351, -10.328368059329602],
        ],
    ),
    (
        GrokfastEMA,
        {"alpha": 0.9, "lamb": 0.5},
        [
            [-0.6347130324564085, -13.712288021288195],
            [-0.6380309097525063, -13.623470743786461],
            [-0.6456977043487034, -13.591589061083523],
            [-0.6533397236375754, -13.501355087417892],
        ],
    ),
    (
        GrokfastMA,
        {"window": 7},
        [
            [-0.6322897468050048, -13.731192529054663],
            [-0.6333725279572286, -13.662808509519508],
            [-0.6139931185047823, -13.876114228307507],
            [-0.6158245324844398, -13.88207545507745],
        ],
    ),
    (
        GrokfastMA,
        {"window": 7, "lamb": 0.3, "reduce": "sum", "warmup": False},
        [
            [-0.6337437181958469, -13.719849824394778],
            [-0.6366053050845795, -13.619607894339202],
            [-0.6213109352212363, -13.536177464746402],
            [-0.6224476165906075, -13.530055625953404],
        ],
    ),
]


@pytest.mark.parametrize(("wrapper", "hyper", "expected"), GOLDEN)
def test_authors_trajectory(wrapper: Any, hyper: dict[str, Any], expected: list[list[float]]):
    params = parameters()
    optimizer = torch.optim.SGD(params, lr=0.01)
    wrapper(optimizer, **hyper)
    found = digests(params, optimizer.step)
    torch.testing.assert_close(*torch.tensor([found, expected], dtype=torch.float64), rtol=0, atol=1e-12)


def filtered(wrapper: Any, raw: list[float], **hyper: Any) -> list[float]:
    x = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = torch.optim.SGD([x], lr=0.0)
    wrapper(optimizer, **hyper)
    seen = []
    for value in raw:
        x.grad = torch.full_like(x, value)
        optimizer.step()
        seen.append(float(x.grad[0]))
    return seen


@settings(max_examples=25, deadline=None)
@given(
    raw=st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=40),
    window=st.integers(1, 9),
    warmup=st.booleans(),
    reduce=st.sampled_from(["mean", "sum"]),
)
def test_window_is_the_plain_definition(raw: list[float], window: int, warmup: bool, reduce: str):
    expected = []
    for t, value in enumerate(raw):
        past = raw[max(0, t + 1 - window) : t + 1]
        slow = sum(past) / (len(past) if reduce == "mean" else 1)
        expected.append(value if warmup and len(past) < window else value + 5.0 * slow)
    assert filtered(GrokfastMA, raw, window=window, warmup=warmup, reduce=reduce) == pytest.approx(expected, abs=1e-8)


def test_first_average_is_a_copy():
    """A first average that aliased the gradient would be multiplied along with it."""
    seen = filtered(GrokfastEMA, [1.0, 0.0, 0.0], alpha=0.5, lamb=2.0)
    assert seen == [3.0, 1.0, 0.5]


def test_after_step_leaves_the_first_alone():
    assert filtered(GrokfastEMA, [1.0] * 4, after_step=2) == pytest.approx([1.0, 1.0, 3.0, 3.0])


def test_running_sum_does_not_drift():
    raw = [1e8] * 5 + [1e-3] * 50
    assert filtered(GrokfastMA, raw, window=5, lamb=1.0)[-1] == pytest.approx(2e-3, rel=1e-12)


@pytest.mark.parametrize(
    ("wrapper", "hyper"),
    [
        (GrokfastEMA, {"alpha": 1.0}),
        (GrokfastEMA, {"lamb": -1.0}),
        (GrokfastEMA, {"after_step": -1}),
        (GrokfastMA, {"window": 0}),
        (GrokfastMA, {"lamb": float("nan")}),
        (GrokfastMA, {"reduce": "max"}),
    ],
)
def test_bad_arguments_are_named(wrapper: Any, hyper: dict[str, Any]):
    optimizer = torch.optim.SGD(parameters(), lr=0.1)
    with pytest.raises(InputError, match=next(iter(hyper))):
        wrapper(optimizer, **hyper)
    assert not optimizer._optimizer_step_pre_hooks, "a refused filter must not stay behind"
