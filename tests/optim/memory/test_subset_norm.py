"""SNSM: published code, the two halves apart, and renewal of the subspace."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import SNSM
from hasten.optim.memory.subset_norm import divisor


def start(*shape: int) -> nn.Parameter:
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


# Sums of entries, and of entries times 1, 2, ..., of an 8x6 and a 6x8 matrix after 12 steps of GenericOptim of
# timmytonga/sn-sm, commit afec62a: lr 1e-2, decay 0.1, rank 3, within one gap (it takes its SVD in single precision).
PUBLISHED = {
    ("subset", "subspace", "heuristic", "svd"): ((0.0145228, -20.7428107), (0.1635143, -18.7432081)),
    ("subset", "subspace", 7, "topk"): ((-0.0166138, -20.8306224), (0.4252986, -9.7415788)),
    ("subset", "full", "heuristic", "svd"): ((0.0859692, -20.0199181), (0.1438132, -18.7099257)),
    ("full", "subspace", "heuristic", "topk"): ((-0.0305985, -19.630353), (1.009399, 7.1461709)),
}


@pytest.mark.parametrize(("second_moment", "momentum", "subset_size", "projection"), list(PUBLISHED))
def test_published_code(second_moment: str, momentum: str, subset_size: Any, projection: str) -> None:
    optimizer = SNSM(
        [start(8, 6), start(6, 8)],
        lr=1e-2,
        second_moment=second_moment,
        momentum=momentum,
        subset_size=subset_size,
        rank=3,
        projection=projection,
        weight_decay=0.1,
    )
    golden = PUBLISHED[second_moment, momentum, subset_size, projection]
    for param, expected in zip(walk(optimizer, 1, 13), golden):
        assert digest(param) == pytest.approx(expected, abs=2e-5)


def test_both_halves_full_are_adam() -> None:
    ours = SNSM([start(5, 3), start(4)], lr=1e-2, eps=0.0, second_moment="full", momentum="full")
    theirs = torch.optim.Adam([start(5, 3), start(4)], lr=1e-2, eps=0.0)
    for left, right in zip(walk(ours, 1, 10), walk(theirs, 1, 10)):
        torch.testing.assert_close(left, right, atol=1e-12, rtol=1e-12)


def test_vectors_keep_full_moments() -> None:
    ours, theirs = SNSM([start(6)], lr=1e-2, eps=0.0), torch.optim.Adam([start(6)], lr=1e-2, eps=0.0)
    torch.testing.assert_close(walk(ours, 1, 10), walk(theirs, 1, 10), atol=1e-12, rtol=1e-12)


def test_without_moments_it_is_gradient_descent() -> None:
    ours = SNSM([start(5, 3)], lr=1e-2, second_moment="none", momentum="none")
    theirs = torch.optim.SGD([start(5, 3)], lr=1e-2)
    torch.testing.assert_close(walk(ours, 1, 10), walk(theirs, 1, 10), atol=1e-13, rtol=1e-13)
    assert set(ours.state[ours.param_groups[0]["params"][0]]) == {"step"}


def test_a_second_decay_of_one_is_adagrad() -> None:
    ours = SNSM([start(5, 3)], lr=1e-2, betas=(0.0, 1.0), eps=1e-10, second_moment="full", momentum="none")
    theirs = torch.optim.Adagrad([start(5, 3)], lr=1e-2)
    torch.testing.assert_close(walk(ours, 1, 10), walk(theirs, 1, 10), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("projection", ["svd", "topk", "uniform"])
@pytest.mark.parametrize("shape", [(7, 4), (4, 7)])
def test_momentum_inside_and_the_gradient_outside(projection: str, shape: tuple[int, int]) -> None:
    """Worked out with the projection as a matrix; momentum starts anew with the subspace."""
    param, gap = start(*shape), 3
    optimizer = SNSM([param], lr=1e-2, second_moment="none", rank=2, projection=projection, update_gap=gap, seed=3)
    expected, m, inside = param.detach().clone(), torch.zeros(shape), torch.eye(1)
    tall = shape[0] >= shape[1]
    left = tall == (projection != "svd")
    for t in range(1, 9):
        g = stream(t, param)
        walk(optimizer, t, t + 1)
        state = optimizer.state[param]
        if (t - 1) % gap == 0:
            rows = state["basis"] if projection == "svd" else torch.eye(max(shape)).double()[state["index"].long()]
            inside, m = rows.T @ rows, torch.zeros(shape, dtype=torch.float64)
        project = (lambda x, by=inside: by @ x) if left else (lambda x, by=inside: x @ by)
        m = 0.9 * m + 0.1 * project(g)
        expected = expected - 1e-2 / (1 - 0.9**t) * (m + g - project(g))
        torch.testing.assert_close(param.detach(), expected, atol=1e-12, rtol=0)


def test_topk_takes_the_largest_rows() -> None:
    param = start(8, 3)
    optimizer = SNSM([param], rank=3, projection="topk")
    walk(optimizer, 1, 2)
    largest = stream(1, param).norm(dim=1).argsort()[-3:]
    assert set(optimizer.state[param]["index"].long().tolist()) == set(largest.tolist())


def test_random_rows_change_and_do_not_depend_on_company() -> None:
    alone, joint = start(9, 4), [start(9, 4), start(9, 4)]
    options: dict[str, Any] = {"rank": 4, "projection": "uniform", "update_gap": 2}
    single, both = SNSM([alone], **options), SNSM(joint, **options)
    drawn = []
    for t in (1, 3):
        walk(single, t, t + 2)
        walk(both, t, t + 2)
        drawn.append(single.state[alone]["index"].clone())
        assert len(set(drawn[-1].tolist())) == 4
        assert torch.equal(drawn[-1], both.state[joint[0]]["index"])
        assert not torch.equal(drawn[-1], both.state[joint[1]]["index"])
    assert not torch.equal(*drawn)


@pytest.mark.parametrize("projection", ["uniform", "topk"])
def test_resumes_bit_for_bit(projection: str) -> None:
    options: dict[str, Any] = {"rank": 3, "projection": projection, "update_gap": 3}
    optimizer, fresh = (SNSM([start(7, 4), start(4, 7)], **options) for _ in range(2))
    walk(optimizer, 1, 6)
    fresh.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for target, source in zip(fresh.param_groups[0]["params"], optimizer.param_groups[0]["params"]):
        target.data.copy_(source.data)
    assert all(map(torch.equal, walk(optimizer, 6, 12), walk(fresh, 6, 12)))


@pytest.mark.parametrize(
    ("options", "shapes"),
    [
        ({"rank": 2}, {"exp_avg": (8, 2), "basis": (2, 6), "exp_avg_sq_row": (8, 1)}),
        ({"rank": 2, "projection": "topk"}, {"exp_avg": (2, 6), "index": (2,), "exp_avg_sq_row": (8, 1)}),
        ({"momentum": "none", "subset_size": 7}, {"exp_avg_sq_chunk": (8, 1)}),
        ({"momentum": "none", "second_moment": "none"}, {}),
    ],
)
def test_what_is_kept_of_a_matrix(options: dict[str, Any], shapes: dict[str, tuple[int, ...]]) -> None:
    param = start(8, 6)
    optimizer = SNSM([param], **options)
    walk(optimizer, 1, 2)
    assert {name: tuple(value.shape) for name, value in optimizer.state[param].items() if name != "step"} == shapes


def test_stretches_are_as_long_as_they_can_be() -> None:
    assert [divisor(48, most) for most in (1, 7, 12, 100)] == [1, 6, 12, 48]
    assert divisor(7, 6) == 1


@pytest.mark.parametrize("grad", [torch.zeros(4, 3), torch.ones(4, 3)])
def test_degenerate_gradients_give_finite_steps(grad: Tensor) -> None:
    for projection in ("svd", "topk", "uniform"):
        param = nn.Parameter(torch.ones(4, 3))
        optimizer = SNSM([param], projection=projection, update_gap=1)
        for _ in range(3):
            param.grad = grad.clone()
            optimizer.step()
        assert torch.isfinite(param).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"second_moment": "rows"}, "second_moment"),
        ({"momentum": "ema"}, "momentum"),
        ({"projection": "random"}, "projection"),
        ({"subset_size": 0}, "subset_size"),
        ({"subset_size": "row"}, "subset_size"),
        ({"rank": 0}, "rank"),
        ({"update_gap": 0}, "update_gap"),
        ({"betas": (1.0, 0.9)}, r"betas\[0\]"),
        ({"betas": (0.9, 1.1)}, r"betas\[1\]"),
        ({"seed": -1}, "seed"),
    ],
)
def test_bad_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        SNSM([start(3, 2)], **options)
