"""FRUGAL: published code with the same choices, the split into inside and outside, and the order of blocks."""

from __future__ import annotations

import io
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import Frugal, OnlineSubspace
from hasten.optim.memory.frugal import blocks

SHAPES = ((8, 6), (6, 8), (4,))


def start(shape: tuple[int, ...]) -> nn.Parameter:
    return nn.Parameter(torch.cos(torch.arange(math.prod(shape), dtype=torch.float64)).reshape(shape))


def stream(t: int, param: Tensor) -> Tensor:
    i = torch.arange(param.numel(), dtype=torch.float64)
    return (torch.sin(0.7 * t + 1.3 * i * (1 + i % 3)) * (1 + 0.1 * i)).reshape(param.shape)


def walk(optimizer: torch.optim.Optimizer, first: int, last: int) -> list[Tensor]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for t in range(first, last):
        for param in params:
            param.grad = stream(t, param)
        optimizer.step()
    return [param.detach().clone() for param in params]


def digest(param: Tensor) -> tuple[float, float]:
    flat = param.flatten()
    return float(flat.sum()), float((flat * torch.arange(1, len(flat) + 1)).sum())


# Sums of entries, and of entries times 1, 2, ..., of an 8x6 and a 6x8 matrix after 12 steps of fzmushko/FRUGAL (its
# GaloreAdamW, CoordAdamW, BlockAdamW, GaloreLion): density 0.5, gap 5, lr 1e-2, betas (0.9, 0.99), decay 0.1, scales
# 0.7 inside and 0.3 outside. There randperm(n) is made to be n-1, ..., 0; blocks go in ascending order.
PUBLISHED = {
    ("adamw", "svd", "sign_sgd"): ((0.0883899, -18.8075934), (0.1258894, -19.6796746)),
    ("adamw", "columns", "sgd"): ((0.1352414, -19.2576759), (0.0793302, -20.2112932)),
    ("adamw", "rows", "none"): ((0.1065473, -19.8591786), (0.1065473, -19.8591786)),
    ("adamw", "randk", "sign_sgd"): ((0.1107263, -19.6503459), (0.1107263, -19.6503459)),
    ("adamw", "blocks", "sign_sgd"): ((0.103099, -18.7924586), (0.1172708, -20.3062097)),
    ("lion", "svd", "sgd"): ((0.0191479, -21.299855), (0.1499422, -18.4474257)),
}


@pytest.mark.parametrize(("base", "projection", "inactive"), list(PUBLISHED))
def test_published_code(monkeypatch: Any, base: str, projection: str, inactive: str) -> None:
    monkeypatch.setattr(torch, "randperm", lambda n, **_: torch.arange(n - 1, -1, -1))
    optimizer = Frugal(
        [start(shape) for shape in SHAPES[:2]],
        base,
        projection,
        density=0.5,
        update_gap=5,
        inactive=inactive,
        inactive_lr_scale=0.3,
        proj_lr_scale=0.7,
        block_order="ascending",
        lr=1e-2,
        betas=(0.9, 0.99),
        weight_decay=0.1,
    )
    for param, golden in zip(walk(optimizer, 1, 13), PUBLISHED[base, projection, inactive]):
        assert digest(param) == pytest.approx(golden, abs=2e-5)


def test_without_outside_and_reset_it_is_galore() -> None:
    options: dict[str, Any] = {"update_gap": 4, "lr": 1e-2, "eps": 1e-8}
    ours = Frugal(
        map(start, SHAPES), density=0.5, projection="svd", inactive="none", reset=False, weight_decay=0.0, **options
    )
    theirs = OnlineSubspace(map(start, SHAPES), kind="svd", rank=3, scale=1.0, **options)
    assert all(map(torch.equal, walk(ours, 1, 12), walk(theirs, 1, 12)))


def test_outside_the_columns_it_is_signed_descent() -> None:
    param = start((8, 6))
    optimizer = Frugal([param], projection="columns", density=0.5, lr=1e-2, inactive_lr_scale=0.5, weight_decay=0.0)
    before = param.detach().clone()
    (after,) = walk(optimizer, 1, 2)
    chosen = optimizer.state[param]["index"].tolist()
    rest = [column for column in range(6) if column not in chosen]
    torch.testing.assert_close((after - before)[:, rest], -5e-3 * stream(1, param)[:, rest].sign())
    # Adam's first step is signed too, but whole.
    torch.testing.assert_close((after - before)[:, chosen], -1e-2 * stream(1, param)[:, chosen].sign())
    assert optimizer.state[param]["base.exp_avg"].shape == (8, 3)


@pytest.mark.parametrize(("density", "inactive"), [(0.0, "sign_sgd"), (0.0, "sgd"), (0.0, "none")])
def test_density_zero_has_no_state(density: float, inactive: str) -> None:
    param = start((8, 6))
    before = param.detach().clone()
    optimizer = Frugal([param], density=density, inactive=inactive, lr=1e-2, weight_decay=0.0)
    (after,) = walk(optimizer, 1, 2)
    g = stream(1, param)
    torch.testing.assert_close(
        after - before, {"sign_sgd": -1e-2 * g.sign(), "sgd": -1e-2 * g, "none": 0 * g}[inactive]
    )
    assert not [name for name in optimizer.state[param] if name.startswith("base.")]


def test_vectors_and_groups_without_density_take_the_bases_step() -> None:
    ours = Frugal([{"params": [start((8, 6))], "density": None}, {"params": [start((4,))]}], lr=1e-2)
    theirs = torch.optim.AdamW([start((8, 6)), start((4,))], lr=1e-2, weight_decay=0.01)
    for left, right in zip(walk(ours, 1, 8), walk(theirs, 1, 8)):
        torch.testing.assert_close(left, right, atol=1e-13, rtol=1e-13)


def test_a_new_subspace_starts_anew_unless_told_otherwise() -> None:
    counts = []
    for reset in (True, False):
        optimizer = Frugal([start((8, 6))], update_gap=3, reset=reset)
        walk(optimizer, 1, 6)
        (state,) = optimizer.state.values()
        counts.append(float(state["base.step"]))
    assert counts == [2.0, 5.0]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("ascending", [[0, 1], [2, 3], [4, 5], [0, 1]]),
        ("descending", [[5, 4], [3, 2], [1, 0], [5, 4]]),
        ("mirror", [[0, 5], [1, 4], [2, 3], [0, 5]]),
    ],
)
def test_order_of_blocks(order: str, expected: list[list[int]]) -> None:
    assert [list(blocks(6, 1 / 3, order, renewal)) for renewal in range(4)] == expected


def test_random_blocks_are_distinct_and_change() -> None:
    drawn = [tuple(blocks(20, 0.25, "random", renewal)) for renewal in range(5)]
    assert all(len(set(active)) == 5 for active in drawn)
    assert len(set(drawn)) > 1


def test_blocks_keep_state_for_their_share_of_the_matrices() -> None:
    params = [start((4, 4)) for _ in range(4)]
    optimizer = Frugal(params, projection="blocks", density=0.5, update_gap=2, block_order="ascending")
    found = []
    for last in (2, 4):
        walk(optimizer, last - 1, last + 1)
        found.append(["base.exp_avg" in optimizer.state[param] for param in params])
    assert found == [[True, True, False, False], [False, False, True, True]]


@pytest.mark.parametrize("projection", ["svd", "random", "columns", "rows", "randk", "blocks"])
@pytest.mark.parametrize("base", ["adamw", "lion", torch.optim.RMSprop])
def test_resumes_bit_for_bit(projection: str, base: Any) -> None:
    optimizer, fresh = (
        Frugal(map(start, SHAPES), base, projection, density=0.5, update_gap=3, lr=1e-2) for _ in range(2)
    )
    walk(optimizer, 1, 6)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    for target, source in zip(fresh.param_groups[0]["params"], optimizer.param_groups[0]["params"]):
        target.data.copy_(source.data)
    assert all(map(torch.equal, walk(optimizer, 6, 11), walk(fresh, 6, 11)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "sgd"}, "base"),
        ({"projection": "topk"}, "projection"),
        ({"density": 1.5}, "density"),
        ({"update_gap": 0}, "update_gap"),
        ({"inactive": "no"}, "inactive"),
        ({"inactive_lr_scale": -1.0}, "inactive_lr_scale"),
        ({"block_order": "sorted"}, "block_order"),
        ({"projection": "blocks", "block_order": "mirror", "density": 1.0}, "pairs"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Frugal([start((3, 2))], **options)
