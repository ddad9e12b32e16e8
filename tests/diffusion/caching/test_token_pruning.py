"""Cached token pruning: the published choice and restoration, what runs on what, a model left as it was, bad inputs."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import CachedTokenPruning
from hasten.diffusion.caching.token_pruning import pivots, restore
from hasten.problems.networks.var import TinyVAR

LABELS = torch.arange(3)


def ramp(*shape: int) -> Tensor:
    return torch.arange(torch.Size(shape).numel(), dtype=torch.float64)


def model() -> Any:
    torch.manual_seed(0)
    return TinyVAR(size=8, scales=(1, 2, 4, 8), width=16, depth=3, heads=2).double()


def draw(made: Any, **options: Any) -> Tensor:
    return made.generate(LABELS, torch.Generator().manual_seed(1), **options)


def test_choice_and_map_are_the_published_ones() -> None:
    """Golden numbers from csguoh/FastVAR (34cdd65), `masked_previous_scale_cache` of HART, in float64."""
    x = torch.sin(ramp(2, 36, 3) ** 1.5).view(2, 36, 3)
    base = torch.cos(ramp(2, 16, 3) ** 1.3).view(2, 16, 3)
    index = pivots(x, 9)
    assert index.tolist() == [[1, 8, 12, 13, 20, 23, 24, 26, 35], [0, 2, 14, 18, 20, 26, 32, 34, 35]]
    kept = x.gather(1, index[:, :, None].expand(-1, -1, 3))
    merged = restore(2 * kept + 1, base, index, 6)
    expected = [1.0, -0.14763305963632237, 0.583133390877582, 2.3103213275077055, 0.8773418095516491]
    assert merged.flatten()[[0, 50, 100, 150, 200]].tolist() == pytest.approx(expected, abs=1e-12)
    assert float(merged.sum()) == pytest.approx(58.176493866029865, abs=1e-9)


def test_ratio_zero_changes_nothing() -> None:
    made = model()
    plain = draw(made)
    with CachedTokenPruning({4: 0.0, 8: 0.0}, keep_first_layers=0).attached(made) as count:
        assert torch.equal(draw(made), plain)
    assert count.share == 1.0


def test_tokens_are_counted() -> None:
    made = model()
    with CachedTokenPruning({8: 0.75}, keep_first_layers=1).attached(made) as count:
        pruned = draw(made)
    # Attention and feed-forward of three blocks; 85 tokens in all, 48 of the last 64 dropped in two of the blocks.
    assert (count.full, count.run) == (6 * 85, 6 * 85 - 4 * 48)
    assert not torch.equal(pruned, draw(made))


def test_leaves_no_trace() -> None:
    made = model()
    plain, before = draw(made), [dict(module.__dict__) for module in made.modules()]
    pruning = CachedTokenPruning({8: 0.5}, keep_first_layers=0, score=lambda x: x)
    with pruning.attached(made), pytest.raises(InputError, match="per token"):
        draw(made)
    assert [dict(module.__dict__).keys() for module in made.modules()] == [state.keys() for state in before]
    assert torch.equal(draw(made), plain)


class Recorder(nn.Module):
    """A block whose one module doubles its tokens and writes down what it got."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Doubling()

    def forward(self, x: Tensor, **extra: Any) -> Tensor:
        return self.attn(x, **extra)


class Doubling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.got: list[tuple[Tensor, dict[str, Any]]] = []

    def forward(self, x: Tensor, **extra: Any) -> Tensor:
        self.got.append((x, extra))
        return 2 * x


class Stack(nn.Module):
    def __init__(self, depth: int = 1) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Recorder() for _ in range(depth))

    def forward(self, x: Tensor, **extra: Any) -> Tensor:
        for block in self.blocks:
            x = block(x, **extra)
        return x


def test_dropped_tokens_come_from_the_scale_before() -> None:
    stack, small = Stack(), torch.tensor([[[1.0], [2.0], [3.0], [4.0]]])
    large = torch.zeros(1, 16, 1)
    large[0, 5], large[0, 11] = 9.0, -9.0
    with CachedTokenPruning({4: 0.875}, keep_first_layers=0).attached(stack):
        stack(small)
        out = stack(large).view(4, 4)
    expected = torch.tensor([[2.0, 2, 4, 4], [2, 18, 4, 4], [6, 6, 8, -18], [6, 6, 8, 8]])
    torch.testing.assert_close(out, expected)
    assert stack.blocks[0].attn.got[1][0].flatten().tolist() == [9.0, -9.0]  # type: ignore[union-attr]


def test_first_layers_and_pruned_scales_do_not_refresh() -> None:
    """The second pruned scale still takes the map of the latest full one; first layers run in full."""
    stack = Stack(2)
    with CachedTokenPruning({2: 0.5, 4: 0.5}, keep_first_layers=1).attached(stack):
        for side in (1, 2, 4):
            stack(torch.full((1, side**2, 1), float(side)))
        first, second = ([len(x[0]) for x, _ in block.attn.got] for block in stack.blocks)  # type: ignore[union-attr]
        out = stack(torch.full((1, 16, 1), 4.0))
    assert (first, second) == ([1, 4, 16], [1, 2, 8])
    assert out.flatten().sort().values.tolist() == [4.0] * 8 + [16.0] * 8


def test_rows_of_further_arguments_are_cut() -> None:
    stack, places = Stack(), torch.arange(16.0).view(1, 16, 1)
    x = torch.zeros(2, 16, 1)
    x[0, 3], x[1, 7] = 5.0, 5.0
    with CachedTokenPruning({4: 0.9375}, keep_first_layers=0, per_token=("places",)).attached(stack):
        stack(torch.zeros(2, 4, 1), places=torch.zeros(1, 4, 1))
        stack(x, places=places, other=places)
    extra = stack.blocks[0].attn.got[1][1]  # type: ignore[union-attr]
    assert extra["places"].flatten().tolist() == [3.0, 7.0]
    assert extra["other"] is places


def test_score_of_your_own() -> None:
    seen: list[tuple[int, ...]] = []

    def last(x: Tensor) -> Tensor:
        seen.append(tuple(x.shape))
        return torch.arange(x.shape[1], dtype=x.dtype).expand(x.shape[:2])

    stack = Stack()
    with CachedTokenPruning({4: 0.75}, keep_first_layers=0, score=last).attached(stack):
        stack(torch.zeros(1, 4, 1))
        out = stack(torch.ones(1, 16, 1)).flatten()
    assert seen == [(1, 16, 1)]
    assert out.tolist() == [0.0] * 12 + [2.0] * 4


def test_refuses_bad_arguments() -> None:
    for ratios in ({8: 1.0}, {8: -0.1}, {0: 0.5}, {}, 0.5):
        with pytest.raises(InputError, match="ratios"):
            CachedTokenPruning(ratios)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="score"):
        CachedTokenPruning(score="norm")
    with pytest.raises(InputError, match="keep_first_layers"):
        CachedTokenPruning(keep_first_layers=-1)


def test_refuses_what_it_cannot_prune() -> None:
    every = CachedTokenPruning({2: 0.5}, keep_first_layers=0)
    stack = Stack()
    with every.attached(stack):
        with pytest.raises(InputError, match="85 tokens, not a square map"):
            stack(torch.zeros(1, 85, 1))
        with pytest.raises(InputError, match="nothing stored"):
            stack(torch.zeros(1, 4, 1))
        stack(torch.zeros(1, 1, 1))
        with pytest.raises(InputError, match="nothing stored"):
            stack(torch.zeros(2, 4, 1))
        with pytest.raises(InputError, match="attached already"), every.attached(stack):
            pass
    with pytest.raises(InputError, match="blocks"), every.attached(nn.Linear(2, 2)):
        pass
    with CachedTokenPruning({2: 0.5}, keep_first_layers=0, score=lambda x: x[:, 0]).attached(stack):
        stack(torch.zeros(1, 1, 1))
        with pytest.raises(InputError, match="a number per token"):
            stack(torch.zeros(1, 4, 1))
