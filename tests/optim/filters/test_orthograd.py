"""OrthoGrad against the authors' code, its defining property, and tensors without a direction."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from recorded_stream import digests, parameters

from hasten.core.errors import InputError
from hasten.optim.filters.orthograd import OrthoGrad

# Digests of the matrix and the vector after 1, 2, 10, 100 steps behind orthograd.py of
# LucasPrietoAl/grokking-at-the-edge-of-numerical-stability at commit 0cc9e8d, float64.
GOLDEN: list[tuple[type[torch.optim.Optimizer], dict[str, Any], list[list[float]]]] = [
    (
        torch.optim.SGD,
        {"lr": 0.01, "momentum": 0.9},
        [
            [-0.7784006987062956, -15.399726362502168],
            [-0.7939196838601882, -15.49398009028486],
            [-0.7708700973808078, -15.135625929813946],
            [-1.1693141245604621, -19.822440801170153],
        ],
    ),
    (
        torch.optim.AdamW,
        {"lr": 0.01, "weight_decay": 0.1},
        [
            [-0.7877946037787084, -15.516000175363878],
            [-0.8038300787574789, -15.571986329352452],
            [-0.8140369664387836, -15.502199154081891],
            [-0.6890044335958208, -13.743570029039104],
        ],
    ),
]


@pytest.mark.parametrize(("base", "hyper", "expected"), GOLDEN)
def test_authors_trajectory(base: Any, hyper: dict[str, Any], expected: list[list[float]]):
    params = parameters()[:2]
    optimizer = base(params, **hyper)
    OrthoGrad(optimizer)
    found = digests(params, optimizer.step)
    torch.testing.assert_close(*torch.tensor([found, expected], dtype=torch.float64), rtol=0, atol=1e-12)


def filtered(w: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
    param = torch.nn.Parameter(w.clone())
    optimizer = torch.optim.SGD([param], lr=0.0)
    OrthoGrad(optimizer)
    param.grad = g.clone()
    optimizer.step()
    return param.grad


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), scale=st.sampled_from([1e-6, 1.0, 1e6]))
def test_orthogonal_and_as_long_as_before(seed: int, scale: float):
    generator = torch.Generator().manual_seed(seed)
    w, g = torch.randn(2, 3, 4, generator=generator, dtype=torch.float64)
    found = filtered(w * scale, g / scale)
    assert abs(float((found * w).sum())) <= 1e-12 * float(found.norm() * w.norm())
    assert float(found.norm()) == pytest.approx(float(g.norm()) / scale, rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.complex64])
def test_tensors_without_a_direction(dtype: torch.dtype):
    zero = torch.zeros(3, dtype=dtype)
    g = torch.tensor([1.0, -2.0, 0.5], dtype=dtype)
    assert torch.equal(filtered(zero, g), g), "zero weights, as of fresh biases, have no direction to remove"
    assert torch.equal(filtered(g, zero), zero)
    assert torch.equal(filtered(g, 3 * g), zero), "what rounding leaves of a parallel gradient is not blown up"
    for shape in ((), (1,)):
        one = torch.ones(shape, dtype=dtype)
        assert torch.equal(filtered(one, one), one)


def test_half_precision_is_projected_in_single():
    generator = torch.Generator().manual_seed(0)
    w, g = torch.randn(2, 1000, generator=generator)
    rough = filtered(w.bfloat16(), g.bfloat16())
    fine = filtered(w.bfloat16().float(), g.bfloat16().float())
    torch.testing.assert_close(rough, fine.bfloat16(), rtol=0, atol=0)


def test_a_gradient_that_is_not_a_number_shows():
    assert filtered(torch.ones(3), torch.tensor([1.0, float("nan"), 0.0])).isnan().any()


@pytest.mark.parametrize("eps", [0.0, -1.0, float("nan")])
def test_bad_arguments_are_named(eps: float):
    with pytest.raises(InputError, match="eps"):
        OrthoGrad(None, eps=eps)
