"""FORA: the written-out rule on a transformer, its passes, and that it is TaylorSeer of order 0."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, FORA, Denoiser, FlowMatching, TaylorSeer, sample
from hasten.problems.networks.dit import frequencies


def noise() -> Tensor:
    return torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def written_out(dit: Any, x: Tensor, t: Tensor, store: dict[tuple[int, str], Tensor], full: bool) -> Tensor:
    """The network with this step's embeddings, modulation and gates around the stored outputs."""
    h = dit.embed(x).flatten(2).transpose(1, 2) + dit.position
    c = F.silu(dit.time(frequencies(t, 16)) + dit.label(torch.full((len(x),), 10)))
    for i, block in enumerate(dit.blocks):
        shift1, scale1, gate1, shift2, scale2, gate2 = block.modulation(c).unsqueeze(1).chunk(6, dim=-1)
        if full:
            store[i, "attn"] = block.attn(block.norm1(h) * (1.0 + scale1) + shift1)
        h = h + gate1 * store[i, "attn"]
        if full:
            store[i, "mlp"] = block.mlp(block.norm2(h) * (1.0 + scale2) + shift2)
        h = h + gate2 * store[i, "mlp"]
    h = dit.final(h, c).view(len(x), 4, 4, 1, 2, 2)
    return h.permute(0, 3, 1, 4, 2, 5).reshape(x.shape)


@torch.no_grad()
def test_is_the_written_out_rule(dit: Any) -> None:
    store: dict[tuple[int, str], Tensor] = {}
    with FORA(interval=3).attached(dit) as cache:
        for step in range(9):
            x, t = noise() + 0.1 * step, torch.full((2,), 1.0 - 0.1 * step)
            found = dit(x, t)
            expected = written_out(dit, x, t, store, full=step in {0, 1, 4, 7})
            torch.testing.assert_close(found, expected)
    assert (cache.full, cache.forecasts) == (4, 5)
    assert cache.stored == 6 * 2 * 16 * 16


@pytest.mark.parametrize(("interval", "passes"), [(3, 18), (4, 14), (5, 11), (1, 50), (50, 2)])
def test_passes_of_fifty_steps(dit: Any, interval: int, passes: int) -> None:
    """As the published code makes them: on step 49 and on multiples of the interval, counting down to 0."""
    cache, costs = FORA(interval), {}
    sample(Denoiser(dit, FlowMatching(), "velocity"), (1, 1, 8, 8), "ddim", steps=50, cache=cache, costs=costs)
    assert (cache.full, costs["passes"], costs["nfe"]) == (passes, passes, 50)
    if interval < 50:
        assert passes == len({49} | {step for step in range(50) if step % interval == 0})


def test_is_taylorseer_of_order_0(dit: Any) -> None:
    made = Denoiser(dit, FlowMatching(), "velocity")
    options: dict[str, Any] = {"noise": noise(), "sampler": DDIM(grid="uniform"), "steps": 15}
    assert torch.equal(sample(made, cache="fora", **options), sample(made, cache=TaylorSeer(3, order=0), **options))


def test_refuses_bad_arguments(dit: Any) -> None:
    with pytest.raises(InputError, match="interval"):
        FORA(interval=0)
    with pytest.raises(TypeError):
        FORA(order=1)  # type: ignore[call-arg]
    with pytest.raises(InputError, match=r"modules.*norm1, attn, norm2, mlp, modulation"):
        FORA(modules="attn1").attach(dit)
