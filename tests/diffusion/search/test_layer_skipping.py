"""Leaving out blocks: the written-out network, what is counted, a planted optimum, refusals."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import DDIM, Denoiser, FlowMatching, LayerSkip, sample, search_layers

GRID = (0.99, 0.7, 0.4, 0.1)


class Chain(nn.Module):
    """Blocks that add known functions to their state; the number of its block is how much each one matters."""

    class Block(nn.Module):
        def __init__(self, number: int) -> None:
            super().__init__()
            self.number, self.runs = number, 0

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            self.runs += 1
            return x + self.number * torch.cos(t * (self.number + 1))[:, None]

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Chain.Block(number) for number in range(4))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, t)
        return x


def draw(network: nn.Module, skipped: Any, **options: Any) -> tuple[Tensor, LayerSkip]:
    made = Denoiser(network, FlowMatching(), "velocity")
    layers = LayerSkip(skipped)
    noise = torch.ones(2, 3, dtype=torch.float64)
    return sample(made, noise=noise, sampler=DDIM(grid=GRID), cache=layers, **options), layers


def test_left_out_blocks_pass_their_state_on() -> None:
    network = Chain()
    x = torch.ones(2, 3, dtype=torch.float64)
    for s, t, kept in zip(GRID, GRID[1:], ((0, 3), (0, 1, 2, 3), (2,))):
        velocity = x.clone()
        for number in kept:
            velocity = velocity + number * torch.cos(torch.tensor(s * (number + 1), dtype=torch.float64))
        x = x + (t - s) * velocity
    costs: dict[str, int] = {}
    found, layers = draw(network, [[1, 2], [], [0, 1, 3]], costs=costs)
    torch.testing.assert_close(found, x, atol=1e-8, rtol=1e-8)
    assert (layers.runs, layers.full, layers.forecasts, layers.stored) == (7, 1, 2, 0)
    assert [block.runs for block in network.blocks] == [2, 1, 2, 2]
    assert costs == {"nfe": 3, "rounds": 3, "passes": 1}


def test_every_chain_begins_at_the_first_step() -> None:
    network, (first, layers) = Chain(), draw(Chain(), [[3], [2]])
    made = Denoiser(network, FlowMatching(), "velocity")
    for _ in range(2):
        again = sample(made, noise=torch.ones(2, 3, dtype=torch.float64), sampler=DDIM(grid=GRID), cache=layers)
        assert torch.equal(again, first)
    assert torch.equal(draw(network, [])[0], sample(made, noise=torch.ones(2, 3).double(), sampler=DDIM(grid=GRID)))


def test_search_finds_the_blocks_that_do_not_matter() -> None:
    """Block 0 adds nothing, so that the best three of the twelve calls are those of block 0."""
    made = Denoiser(Chain(), FlowMatching(), "velocity")
    noise = torch.ones(2, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    layers = search_layers(made, GRID, 0.25, noise=noise, scores=150, generator=generator, population=20, epochs=None)
    assert layers.skipped == ((0,), (0,), (0,))
    again = sample(made, noise=noise, sampler=DDIM(grid=GRID), cache=layers)
    torch.testing.assert_close(again, sample(made, noise=noise, sampler=DDIM(grid=GRID)))


def test_search_takes_a_score_and_counts_its_budget() -> None:
    seen: list[float] = []

    def score(x: Tensor) -> float:
        seen.append(float(x.sum()))
        return seen[-1]

    made = Denoiser(Chain(), FlowMatching(), "velocity")
    noise = torch.ones(2, 3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    layers = search_layers(made, GRID, 0.5, noise=noise, score=score, scores=30, generator=generator)
    assert len(seen) == 30
    assert sum(map(len, layers.skipped)) == 6
    assert float(sample(made, noise=noise, sampler=DDIM(grid=GRID), cache=layers).sum()) == min(seen)


@pytest.mark.parametrize(
    ("match", "options"),
    [
        ("skip", {"skip": 0.0}),
        ("skip", {"skip": 1.0}),
        ("leaves out 0", {"skip": 0.01}),
        ("give noise", {"noise": None}),
        ("scores", {"scores": 0}),
        ("evaluations per step", {"sampler": "dpm-solver-2"}),
        ("no search", {"method": "ddim"}),
        ("blocks must name", {"blocks": "layers"}),
    ],
)
def test_search_refuses_bad_arguments(match: str, options: dict[str, Any]) -> None:
    made = Denoiser(Chain(), FlowMatching(), "velocity")
    with pytest.raises(InputError, match=match):
        search_layers(made, GRID, **{"noise": torch.ones(2, 3, dtype=torch.float64), **options})


def test_blocks_that_are_not_there_are_refused() -> None:
    with pytest.raises(InputError, match="has 4"):
        draw(Chain(), [[4]])
    with pytest.raises(InputError, match="skipped"):
        LayerSkip([[-1]])
    with pytest.raises(InputError, match=r"nn\.Module"):
        search_layers(Denoiser(lambda x, t: x, FlowMatching()), GRID, noise=torch.ones(1, 2))
