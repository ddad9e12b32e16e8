"""GS-Jacobi: the exact inverse of a flow, the published iterates, metrics and plans, overflow, bad inputs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import DivergedError, InputError
from hasten.diffusion import gs_jacobi_inverse, invert_flow, jacobi_inverse, plan_flow
from hasten.diffusion.parallel.gs_jacobi import BlockPlan, crm, igm, sequential_inverse
from hasten.problems.networks.tarflow import FlowBlock, TinyTarFlow

TOKENS, FEATURES = 12, 2


def fixed(block: nn.Module, scale: float = 0.12) -> Any:
    """A block whose weights are sines, the same under every version of every library."""
    block = block.double()
    with torch.no_grad():
        for index, weight in enumerate(block.parameters()):
            ramp = torch.arange(weight.numel(), dtype=torch.float64)
            weight.copy_((scale * torch.sin(ramp * (1.0 + 0.1 * index))).view(weight.shape))
        for module in block.modules():
            if isinstance(module, nn.LayerNorm):
                module.weight.add_(1.0)
    return block


def waves(rate: float, phase: float = 0.0) -> Tensor:
    ramp = torch.arange(3 * TOKENS * FEATURES, dtype=torch.float64)
    return torch.sin(ramp * rate + phase).view(3, TOKENS, FEATURES)


def block(flip: bool = False) -> Any:
    return fixed(FlowBlock(TOKENS, FEATURES, 16, 2, 2, flip))


def flow(scale: float = 0.25) -> Any:
    return fixed(TinyTarFlow(size=4, width=16, blocks=3, layers=1, heads=2), scale)


@pytest.mark.parametrize("clamp", [3.0, None])
@pytest.mark.parametrize("init", ["z", "zero"])
@pytest.mark.parametrize("segments", [1, 2, 8, 16])
def test_inverse_is_exact(segments: int, init: str, clamp: float | None) -> None:
    """The data reach beyond the clamp, which must not show."""
    made = flow()
    images = 2.5 * torch.randn(5, 1, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    assert float(images.abs().max()) > 4
    with torch.no_grad():
        z, _ = made(images)
    found = invert_flow(made, z, [BlockPlan(segments, None, init)] * 3, clamp=clamp)
    torch.testing.assert_close(made.unpatchify(found.x), images, rtol=0, atol=1e-8)
    assert all(passes <= 15 for passes in found.passes)


def test_k_passes_settle_k_tokens() -> None:
    made, z = block(), 2.0 * waves(0.7)
    exact = sequential_inverse(made, z)
    assert sum(exact.passes) == TOKENS - 1
    for passes in (1, 4, 9):
        part = jacobi_inverse(made, z, max_iter=passes, tol=0.0).x
        torch.testing.assert_close(part[:, : passes + 1], exact.x[:, : passes + 1], rtol=0, atol=1e-12)
        assert float((part[:, passes + 1 :] - exact.x[:, passes + 1 :]).abs().max()) > 1e-12
    torch.testing.assert_close(jacobi_inverse(made, z, tol=0.0).x, exact.x, rtol=0, atol=1e-13)


def test_stops_when_settled() -> None:
    made, z = block(), waves(0.7)
    loose, tight = jacobi_inverse(made, z, tol=1e-3), jacobi_inverse(made, z, tol=1e-8)
    assert loose.passes[0] < tight.passes[0] < TOKENS - 1
    exact = sequential_inverse(made, z).x
    assert float((tight.x - exact).abs().max()) < 1e-7 < float((loose.x - exact).abs().max())


PUBLISHED = {
    (False, 1, 3, "z"): (-0.48120488988, 1.468028331601, 0.527213344928),
    (False, 3, 2, "z"): (-0.48120488988, 1.468309906515, 0.524541919786),
    (False, 4, 2, "zero"): (-0.48120488988, 1.478118926451, 0.526320610723),
    (False, 12, 1, "z"): (-0.48120488988, 1.46807020832, 0.527092977295),
    (True, 1, 3, "z"): (-0.294663860839, 1.25546022091, 0.996241928755),
    (True, 3, 2, "z"): (-0.295122467757, 1.25546022091, 0.996241928755),
    (True, 4, 2, "zero"): (-0.285885764165, 1.25546022091, 0.996241928755),
}
"""Entries 5, 20 and 47 of what encoreus/GS-Jacobi_for_TarFlow (f28319b), `MetaBlock.reverse`, gives in float64 for
these weights and z, by (flip, segments, iterations, guess)."""


@pytest.mark.parametrize(("case", "expected"), PUBLISHED.items(), ids=str)
def test_iterates_are_the_published_ones(case: Any, expected: tuple[float, ...]) -> None:
    flip, segments, iterations, init = case
    found = gs_jacobi_inverse(block(flip), waves(0.7), segments, iterations, init=init).x.flatten()
    assert found[[5, 20, 47]].tolist() == pytest.approx(expected, abs=1e-11)


@pytest.mark.parametrize(
    ("flip", "guesses", "ranking"),
    [
        (False, (0.08125656000785415, 0.17238641583765685), 0.8328536814057037),
        (True, (0.08144425480495199, 0.182199019168827), 0.8302367657442491),
    ],
)
def test_metrics_are_the_published_ones(flip: bool, guesses: tuple[float, float], ranking: float) -> None:
    """Golden numbers from the same code as above in its detect mode, float64, without its rounding."""
    x = 0.8 * waves(0.9, 0.5 * math.pi)
    assert tuple(igm(block(flip), x).values()) == pytest.approx(guesses, rel=1e-12)
    assert crm(block(flip), x) == pytest.approx(ranking, rel=1e-12)


def test_plan_cuts_up_the_tough_block() -> None:
    made = flow(0.05)
    with torch.no_grad():
        made.blocks[1].final.weight.mul_(40.0)
    x = torch.randn(6, 16, 1, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    plans = plan_flow(made, x, segments=4, max_iter=5)
    assert [plan.segments for plan in plans] == [1, 4, 1]
    assert [plan.max_iter for plan in plans] == [5, None, 5]
    inputs = made.blocks[0](x)[0]
    guesses = igm(made.blocks[1], inputs)
    assert plans[1].init == min(guesses, key=lambda name: guesses[name])
    with torch.no_grad():
        z, _ = made(made.unpatchify(x))
    torch.testing.assert_close(invert_flow(made, z, plan_flow(made, x, segments=4)).x, x, rtol=0, atol=1e-7)


class Steep:
    """`s = rate x` of the token before, `mu = 0`: zeros as guess overflow where z does not, or the reverse."""

    def __init__(self, rate: float, offset: float) -> None:
        self.rate, self.offset = rate, offset

    def ordered(self, x: Tensor, inverse: bool = False) -> Tensor:
        return x

    def extend(self, x: Tensor, start: int, memory: Any) -> tuple[Tensor, Tensor, Any]:
        return torch.zeros_like(x), self.offset - self.rate * x, None

    def projections(self) -> tuple[Tensor, Tensor]:
        return torch.zeros(1, 1), torch.full((1, 1), self.rate)


def test_overflow_from_zeros_falls_back_to_z() -> None:
    z = torch.full((2, 6, 1), 1.0, dtype=torch.float64)
    with pytest.warns(UserWarning, match="overflowed"):
        found = jacobi_inverse(Steep(1000.0, 1000.0), z, init="zero")
    torch.testing.assert_close(found.x, z)
    assert found.overflows > 0
    assert igm(Steep(1000.0, 1000.0), z) == {"z": 0.0, "zero": math.inf}


def test_overflow_of_the_exact_inverse_is_an_error() -> None:
    with pytest.raises(DivergedError, match="token 1 "):
        jacobi_inverse(Steep(0.0, 1000.0), torch.ones(2, 6, 1))


def test_segments_see_their_memory_only_once() -> None:
    """A later segment reads the finished ones from memory: its passes get its own tokens alone."""

    seen: list[tuple[int, int]] = []

    class Watched(Steep):
        def extend(self, x: Tensor, start: int, memory: Any) -> tuple[Tensor, Tensor, Any]:
            seen.append((start, x.shape[1]))
            return super().extend(x, start, memory)

    gs_jacobi_inverse(Watched(0.1, 0.0), torch.ones(1, 8, 1), 2, max_iter=1)
    assert seen == [(0, 4), (4, 3)]


def test_refuses_bad_arguments() -> None:
    made, z = block(), waves(0.7)
    with pytest.raises(InputError, match="segments must divide the number of tokens, 12; got 5"):
        gs_jacobi_inverse(made, z, 5)
    with pytest.raises(InputError, match="segments"):
        gs_jacobi_inverse(made, z, 0)
    with pytest.raises(InputError, match="init"):
        jacobi_inverse(made, z, init="random")
    with pytest.raises(InputError, match="max_iter"):
        jacobi_inverse(made, z, max_iter=0)
    with pytest.raises(InputError, match="clamp"):
        jacobi_inverse(made, z, clamp=-1.0)
    with pytest.raises(InputError, match=r"shape \(batch, tokens, features\)"):
        jacobi_inverse(made, z[0])
    with pytest.raises(InputError, match="one plan per block: the flow has 3, got 1"):
        invert_flow(flow(), torch.zeros(1, 16, 1, dtype=torch.float64), [BlockPlan()])
