"""Feature slicing: grouping, the unsliced output, gradients, attachment to modules, memory, and bad inputs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.diffusion import FeatureSlicer, Operator
from hasten.diffusion.caching.feature_slicer import group
from hasten.numerics.allocation import AllocationPeak


def operators() -> list[Operator]:
    torch.manual_seed(0)
    return [
        Operator(nn.SiLU(), "either"),
        Operator(nn.Conv2d(4, 8, 3, padding=1), "spatial"),
        Operator(nn.GroupNorm(2, 8), "spatial"),
        Operator(nn.Conv2d(8, 4, 3, stride=2, padding=1), "spatial"),
        Operator(nn.GroupNorm(2, 4), "global"),
        Operator(nn.Tanh(), "either"),
        Operator(nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True).eval(), "temporal"),
        Operator(nn.SiLU(), "either"),
    ]


def whole(x: Tensor) -> Tensor:
    """The same layers one by one, as a plain model would run them."""
    made = [fn for fn, _ in operators()]
    batch, _, frames = x.shape[:3]
    rows = x.transpose(1, 2).reshape(batch * frames, *x.shape[1:2], *x.shape[3:])
    for fn in made[:4]:
        rows = fn(rows)
    x = rows.unflatten(0, (batch, frames)).transpose(1, 2)
    x = made[5](made[4](x))
    height, width = x.shape[3:]
    pixels = x.permute(0, 3, 4, 2, 1).reshape(-1, frames, 4)
    return made[7](made[6](pixels)).reshape(batch, height, width, frames, 4).permute(0, 4, 3, 1, 2)


def test_groups_share_a_slicing() -> None:
    made = group(operators())
    assert [(part.slicing, len(part.operators)) for part in made] == [("spatial", 4), ("global", 1), ("temporal", 3)]
    alone = [Operator(nn.Tanh(), "either"), Operator(nn.Identity(), "global"), Operator(nn.Identity(), "global")]
    assert [part.slicing for part in group(alone)] == ["spatial", "global", "global"]
    assert group([]) == []


@pytest.mark.parametrize("chunks", [1, 3, 5, 100])
def test_output_is_that_of_whole_layers(chunks: int) -> None:
    x = torch.randn(2, 4, 5, 6, 8, generator=torch.Generator().manual_seed(1))
    expected = whole(x)
    torch.testing.assert_close(FeatureSlicer(chunks, chunks)(operators(), x), expected, rtol=0, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(FeatureSlicer(chunks, chunks)(operators(), x), expected, rtol=0, atol=1e-5)


def test_gradients_are_those_of_whole_layers() -> None:
    x = torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(2), requires_grad=True)
    (ours,) = torch.autograd.grad(FeatureSlicer(2, 3)(operators(), x).square().sum(), x)
    (expected,) = torch.autograd.grad(whole(x).square().sum(), x)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_a_slice_passes_the_whole_group_first() -> None:
    """So that no operator's output is ever there for all frames: less memory than slicing operators one by one."""
    grow = [Operator(nn.Conv2d(2, 32, 1), "spatial"), Operator(nn.Conv2d(32, 2, 1), "spatial")]
    x = torch.randn(1, 2, 8, 16, 16)
    slicer = FeatureSlicer(8, 8)
    with torch.no_grad():
        with AllocationPeak() as grouped:
            slicer(grow, x)
        with AllocationPeak() as single:
            slicer(grow[1:], slicer(grow[:1], x))
    assert grouped.peak < 0.4 * single.peak


def test_allocation_peak_counts_what_lives_together() -> None:
    x = torch.zeros(100)
    with AllocationPeak() as memory:
        y = x + 1
        y = y.view(10, 10) * 2
        z = y.t()
        del y
        z.add_(1)
    assert memory.peak == 800
    assert memory.live == 400


VIDEO = torch.zeros(1, 1, 4, 2, 2)


class Video(nn.Module):
    """A spatial and a temporal module, by name."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.space = nn.Conv2d(2, 2, 3, padding=1)
        self.time = nn.TransformerEncoderLayer(2, 1, 4, dropout=0.0, batch_first=True).eval()

    def forward(self, x: Tensor) -> Tensor:
        batch, _, frames, height, width = x.shape
        x = self.space(x.transpose(1, 2).flatten(0, 1)).unflatten(0, (batch, frames)).transpose(1, 2)
        pixels = self.time(src=x.permute(0, 3, 4, 2, 1).flatten(0, 2))
        return pixels.unflatten(0, (batch, height, width)).permute(0, 4, 3, 1, 2)


def test_attaches_to_modules_and_leaves_no_trace() -> None:
    model = Video()
    x = torch.randn(1, 2, 6, 4, 4, generator=torch.Generator().manual_seed(4))
    expected = model(x)
    seen: list[int] = []
    inner = model.space._conv_forward
    model.space._conv_forward = lambda rows, *rest: (seen.append(len(rows)), inner(rows, *rest))[1]  # type: ignore[method-assign]
    with FeatureSlicer(3, 4).attached(model, spatial=["space"], temporal=["time"]):
        torch.testing.assert_close(model(x), expected, rtol=0, atol=1e-6)
    assert seen == [2, 2, 2]
    assert "forward" not in model.space.__dict__
    torch.testing.assert_close(model(x), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("match", "make_bad"),
    [
        ("chunks_spatial", lambda: FeatureSlicer(0)),
        ("chunks_temporal", lambda: FeatureSlicer(1, 0)),
        ("slicing of operators", lambda: group([Operator(nn.Identity(), "pixels")])),
        ("must be an Operator", lambda: group([nn.Identity()])),  # type: ignore[list-item]
        ("features must be", lambda: FeatureSlicer()([], torch.zeros(2, 3, 4, 4))),
        ("keep the 2 rows", lambda: FeatureSlicer(2)([Operator(lambda x: x[:1], "spatial")], VIDEO)),
        ("no module", lambda: FeatureSlicer().attached(Video(), spatial=["conv"]).__enter__()),
    ],
)  # fmt: skip
def test_refuses_bad_arguments(match: str, make_bad) -> None:
    with pytest.raises(InputError, match=match):
        make_bad()
