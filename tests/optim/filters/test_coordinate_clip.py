"""Coordinate-wise clipping against a sort, before and after the step, and what it must not hide."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import AdEMAMix, CoordinateClip, GrokfastEMA, compose


def clipped(values: list[Tensor], dtype: torch.dtype = torch.float64, **options: Any) -> list[Tensor]:
    params = [nn.Parameter(torch.ones(value.shape, dtype=dtype)) for value in values]
    optimizer = torch.optim.SGD(params, lr=0.0)
    CoordinateClip(optimizer, **options)
    for param, value in zip(params, values):
        param.grad = value.clone()
    optimizer.step()
    return [param.grad for param in params if param.grad is not None]


def by_sorting(values: list[Tensor], fraction: float) -> float:
    magnitudes = sorted((abs(float(x)) for value in values for x in value.flatten()), reverse=True)
    return magnitudes[int(fraction * len(magnitudes) + 1e-6)]


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 999),
    fraction=st.sampled_from([0.0, 0.1, 0.2, 0.29, 0.5, 0.99]),
    scope=st.sampled_from(["tensor", "global"]),
)
def test_is_the_plain_definition(seed: int, fraction: float, scope: str):
    generator = torch.Generator().manual_seed(seed)
    values = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in [(10, 10), (30,), (3,), ()]]
    for value, found in zip(values, clipped(values, fraction=fraction, scope=scope)):
        bound = by_sorting(values if scope == "global" else [value], fraction)
        assert torch.equal(found, value.clamp(-bound, bound))


def test_threshold_replaces_the_quantile():
    value = torch.tensor([3.0, -0.2, 0.1, -5.0], dtype=torch.float64)
    assert clipped([value], fraction=0.0, threshold=0.2)[0].tolist() == [0.2, -0.2, 0.1, -0.2]


@pytest.mark.parametrize("scope", ["tensor", "global"])
def test_what_is_not_finite_shows(scope: str):
    value = torch.arange(1.0, 11.0, dtype=torch.float64)
    value[3], value[5] = math.inf, math.nan
    found = clipped([value], fraction=0.5, scope=scope)[0]
    assert found[3] == math.inf
    assert math.isnan(found[5])
    assert clipped([value], fraction=0.0, threshold=2.0)[0][3] == math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64])
def test_other_types(dtype: torch.dtype):
    value = torch.tensor([1.0, -2.0, 3.0, 10.0], dtype=dtype)
    expected = [1.0, -2.0, 3.0, 3.0] if not dtype.is_complex else [1.0, -2.0, 2.0, 2.0]
    fraction = 0.25
    assert clipped([value], dtype, fraction=fraction)[0].tolist() == pytest.approx(expected)


def one_step(optimizer: torch.optim.Optimizer, param: nn.Parameter, grad: Tensor) -> Tensor:
    before = param.detach().clone()
    param.grad = grad.clone()
    optimizer.step()
    return param.detach() - before


def test_update_is_clipped_and_momentum_keeps_its_memory():
    grads = torch.randn(5, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    plain, ours = (nn.Parameter(torch.zeros(20, dtype=torch.float64)) for _ in range(2))
    sgd, behind = (torch.optim.SGD([param], lr=0.1, momentum=0.9) for param in (plain, ours))
    CoordinateClip(behind, 0.3, target="update")
    for grad in grads:
        free, held = one_step(sgd, plain, grad), one_step(behind, ours, grad)
        bound = by_sorting([free], 0.3)
        torch.testing.assert_close(held, free.clamp(-bound, bound), rtol=0, atol=1e-15)
        assert torch.equal(sgd.state[plain]["momentum_buffer"], behind.state[ours]["momentum_buffer"])
        assert ours.grad is not None
        assert torch.equal(ours.grad, grad), "only the update is touched"


def test_entries_below_the_bound_are_untouched():
    """To the last bit: adding a difference back would round."""
    grad = torch.tensor([1e-3, 2e-3, 3e-3, 1e3])
    plain, ours = (nn.Parameter(torch.full((4,), 1e4)) for _ in range(2))
    sgd, behind = (torch.optim.SGD([param], lr=1.0) for param in (plain, ours))
    CoordinateClip(behind, 0.25, target="update")
    one_step(sgd, plain, grad)
    one_step(behind, ours, grad)
    assert torch.equal(plain[:3], ours[:3])
    assert ours[3] == ours[2]


def test_stage_follows_the_target():
    x = nn.Parameter(torch.ones(4))
    both = compose(
        torch.optim.SGD([x], lr=0.1),
        CoordinateClip(threshold=1.0, target="update"),
        GrokfastEMA(),
        CoordinateClip(threshold=0.5),
    )
    assert [getattr(part, "target", "") for part in both.parts] == ["", "grad", "update"]
    copied = copy.deepcopy(both)
    assert [getattr(part, "target", "") for part in copied.parts] == ["", "grad", "update"]


def test_only_the_gradient_needs_an_optimizer_that_takes_one():
    class Closure(AdEMAMix):
        takes = "closure"

    CoordinateClip(Closure([nn.Parameter(torch.ones(2))]), target="update")
    with pytest.raises(InputError, match="evaluates"):
        CoordinateClip(Closure([nn.Parameter(torch.ones(2))]), target="grad")


def test_what_is_not_clipped_costs_nothing():
    optimizer = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=0.1)
    CoordinateClip(optimizer)
    assert not optimizer._optimizer_step_post_hooks, "no copy of the parameters is made for the gradient's sake"


@pytest.mark.parametrize(
    "options",
    [{"fraction": 1.0}, {"fraction": -0.1}, {"scope": "layer"}, {"target": "both"}, {"threshold": 0.0}],
)
def test_bad_arguments_are_named(options: dict[str, Any]):
    with pytest.raises(InputError, match=next(iter(options))):
        CoordinateClip(None, **options)
