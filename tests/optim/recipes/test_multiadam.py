"""MultiAdam against the published update and Adam, and what its losses may be."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from recorded_stream import STEPS, digest, parameters, set_gradients
from torch import Tensor, nn

from hasten.core.errors import InputError
from hasten.optim import MultiAdam, NonFiniteGradientError

# Digests after 1, 2, 10, 100 steps of the update of src/optimizer/multiadam.py of i207M/PINNacle at commit 008bbeb,
# float64, for two losses whose gradients are those of the recorded stream at t and at t + 1000.
GOLDEN: list[tuple[dict[str, Any], list[list[float]]]] = [
    (
        {},
        [
            [-0.6264431755491477, -13.76600154451581],
            [-0.6255910980830838, -13.759314540770143],
            [-0.624401701307896, -13.75412830977499],
            [-0.6230334911530039, -13.748001980800701],
        ],
    ),
    (
        {"weight_decay": 0.1},
        [
            [-0.6264431756359918, -13.766001544607658],
            [-0.6255367748668703, -13.758812009577616],
            [-0.6243671546793556, -13.745822677641803],
            [-0.6246810580263035, -13.636999499179085],
        ],
    ),
    (
        {"amsgrad": True},
        [
            [-0.6264431755491477, -13.76600154451581],
            [-0.6255943899011669, -13.75934406990796],
            [-0.6244046857102887, -13.754163059512452],
            [-0.623038325445606, -13.74804799262167],
        ],
    ),
    (
        {"agg_betas": (0.9, 0.99)},
        [
            [-0.5284263495985826, -13.451217586057782],
            [-0.40356434913873995, -12.591638937153293],
            [-0.23174721286238353, -11.646224157613673],
            [0.02891038723142436, -10.578328187638714],
        ],
    ),
    (
        {"group_weights": (0.2, 0.8)},
        [
            [-0.6252431755958388, -13.761801544737075],
            [-0.623864674726811, -13.756194975613486],
            [-0.623252884577292, -13.769270040751232],
            [-0.622297050701458, -13.782351113199864],
        ],
    ),
]


def linear(params: list[nn.Parameter], t: int) -> Tensor:
    """A loss with the gradients of the recorded stream."""
    recorded = parameters()
    set_gradients(recorded, t)
    return sum(((p * r.grad).sum() for p, r in zip(params, recorded)), torch.zeros(()))  # type: ignore[operator]


@pytest.mark.parametrize(("hyper", "expected"), GOLDEN)
def test_published_trajectory(hyper: dict[str, Any], expected: list[list[float]]):
    params, found = parameters(), []
    optimizer = MultiAdam(params, 2, **hyper)
    for t in range(1, 101):
        optimizer.step(losses=[linear(params, t), linear(params, t + 1000)])
        if t in STEPS:
            found.append(digest(params))
    torch.testing.assert_close(*torch.tensor([found, expected], dtype=torch.float64), rtol=0, atol=1e-12)


@pytest.mark.parametrize("hyper", [{}, {"weight_decay": 0.1}, {"amsgrad": True}])
def test_one_loss_is_adam(hyper: dict[str, Any]):
    ours, theirs = parameters(), parameters()
    optimizer = MultiAdam(ours, lr=1e-2, **hyper)
    adam = torch.optim.Adam(theirs, lr=1e-2, betas=(0.99, 0.99), **hyper)
    for t in range(1, 51):
        optimizer.step(lambda t=t: linear(ours, t))
        set_gradients(theirs, t)
        adam.step()
    for a, b in zip(ours, theirs):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-14)


def bowls(x: Tensor, factor: float = 1.0) -> list[Tensor]:
    return [(x - 1).square().sum(), factor * (x + 2).pow(4).sum()]


@pytest.mark.parametrize("factor", [1e-4, 1e4])
def test_scale_of_a_loss_does_not_matter(factor: float):
    ends = []
    for scale in (1.0, factor):
        x = nn.Parameter(torch.linspace(-1, 1, 5, dtype=torch.float64))
        optimizer = MultiAdam([x], 2, lr=1e-2, eps=1e-12)
        for _ in range(60):
            optimizer.step(lambda s=scale: bowls(x, s))  # noqa: B023
        ends.append(x.detach())
    torch.testing.assert_close(*ends, rtol=1e-6, atol=1e-8)


def test_a_weight_of_zero_leaves_a_loss_out():
    x, y = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    both = MultiAdam([x], 2, lr=1e-2, group_weights=(1.0, 0.0))
    one = MultiAdam([y], 1, lr=1e-2)
    for _ in range(20):
        both.step(lambda: bowls(x))
        one.step(lambda: bowls(y)[0])
    torch.testing.assert_close(x, y)


def test_a_parameter_may_be_in_one_loss_only_or_in_none():
    x, y, z = (nn.Parameter(torch.ones(3)) for _ in range(3))
    optimizer = MultiAdam([x, y, z], 2, lr=0.1)
    optimizer.step(losses=[(x * y).sum(), x.square().sum()])
    assert not torch.equal(y, torch.ones(3))
    assert torch.equal(z, torch.ones(3))
    assert not optimizer.state[z]
    torch.testing.assert_close(x.grad, torch.full((3,), 3.0))


def test_an_infinite_second_loss_changes_nothing():
    x = nn.Parameter(torch.ones(3))
    optimizer = MultiAdam([x], 2)
    with pytest.raises(NonFiniteGradientError):
        optimizer.step(losses=[x.sum(), (x * math.inf).sum()])
    assert torch.equal(x, torch.ones(3))
    optimizer.step(losses=bowls(x))
    alone = nn.Parameter(torch.ones(3))
    MultiAdam([alone], 2).step(losses=bowls(alone))
    assert torch.equal(x, alone)


def test_closure_is_the_same_as_losses():
    x, y = (nn.Parameter(torch.linspace(-1, 1, 5)) for _ in range(2))
    first, second = MultiAdam([x], 2), MultiAdam([y], 2)
    for _ in range(3):
        given = bowls(x)
        assert first.step(losses=given) is given
        assert len(second.step(lambda: bowls(y))) == 2
    assert torch.equal(x, y)


def test_bad_losses_are_named():
    x = nn.Parameter(torch.ones(3))
    optimizer = MultiAdam([x], 2)
    with pytest.raises(InputError, match="num_groups=2 losses, got 1"):
        optimizer.step(losses=[x.sum()])
    with pytest.raises(InputError, match=r"losses\[1\] must be a number with its graph"):
        optimizer.step(losses=[x.sum(), torch.ones(())])
    with pytest.raises(InputError, match=r"losses\[0\]"):
        optimizer.step(losses=[x * 1, x.sum()])
    with pytest.raises(InputError, match="either"):
        optimizer.step()


@pytest.mark.parametrize(
    ("hyper", "message"),
    [
        ({"num_groups": 0}, "num_groups"),
        ({"num_groups": 2, "group_weights": (1.0,)}, "group_weights"),
        ({"num_groups": 2, "group_weights": (1.0, -1.0)}, r"group_weights\[1\]"),
        ({"agg_betas": (0.9, 1.0)}, r"agg_betas\[1\]"),
    ],
)
def test_bad_arguments_are_named(hyper: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        MultiAdam(parameters(), **hyper)
